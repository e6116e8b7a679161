"""One training process as the agent holds it: started, spoken to, listened to by a thread, ended."""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import edge_agent
from edge_agent import child_wire as wire
from edge_agent.memory import available_mib
from edge_agent.runtimes.engine import Vector
from edge_agent.settings import AgentSettings

# What of the agent's environment the process gets: where programs, libraries and modules are, and how text is written.
# Settings and secrets of whoever started the agent are none of its business.
PASSED_ON = frozenset(
    {"PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONHOME", "VIRTUAL_ENV"}
)
# One heap for all threads, given back to the system, and no threads beside those that training asks for.
FRUGAL = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "131072",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
# From a kill to an end; longer only in the hands of a file system that hangs.
KILLED_S = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """The process is gone. reason: a word for reports; cause: in words, with the remedy where there is one."""

    reason: str
    cause: str


Heard = wire.Order | wire.Answer | Ended
Launch = Callable[[], "ChildProcess"]


def command(descriptor: int, memory: int) -> tuple[str, ...]:
    """Runs the same code with the same interpreter. -P: not what lies in the folder that the agent was started in."""
    numbers = (descriptor, memory, os.getpid())
    return (sys.executable, "-P", "-m", "edge_agent.training_process", *map(str, numbers))


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """What the process sees of the agent's environment, and what makes it small."""
    own = str(Path(edge_agent.__file__).resolve().parent.parent)
    modules = os.pathsep.join(path for path in (own, given.get("PYTHONPATH", "")) if path)
    return {**{k: v for k, v in given.items() if k in PASSED_ON}, **FRUGAL, "PYTHONPATH": modules}


class ChildProcess:
    """A process that was started. `next` gives what it says, and last that it ended; `wake` is called for each, by a
    thread of our own. Raises OSError when it cannot be started."""

    def __init__(self, start: wire.Start, wake: Callable[[], None]) -> None:
        self._socket, theirs = wire.pair()
        self._memory = os.memfd_create("sparsefleet-result")
        try:
            self._process = subprocess.Popen(
                command(theirs.fileno(), self._memory),
                stdin=subprocess.DEVNULL,
                # What a data source of the operator's prints is for the log.
                stdout=2,
                env=environment(os.environ),
                pass_fds=(theirs.fileno(), self._memory),
            )
        except OSError:
            self._socket.close()
            os.close(self._memory)
            raise
        finally:
            theirs.close()
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()
        self._wake, self._killed, self._closed = wake, "", False
        self.leave_by = float("inf")
        self._thread = threading.Thread(target=self._listen, name="training", daemon=True)
        self._thread.start()
        self.send(start)

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: wire.Order) -> None:
        """Says something; nothing happens where the process is gone, which is heard of in its turn."""
        try:
            self._socket.send(wire.pack_message(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            self.kill("it hears nothing any more")
        except OSError:
            pass

    def next(self, timeout_s: float) -> Heard | None:
        """What it said next, or None after `timeout_s`."""
        try:
            return self._heard.get(timeout=timeout_s) if timeout_s > 0 else self._heard.get_nowait()
        except queue.Empty:
            return None

    def result(self, values: int) -> Vector | None:
        """float32[values] from the memory file, which is empty again then; None where it has another size."""
        return wire.taken(self._memory, values)

    def give(self, *vectors: Vector) -> None:
        """Puts values into the memory file, for the process to take before it writes a result there."""
        os.ftruncate(self._memory, 0)
        start = 0
        for vector in vectors:
            part = vector.astype(wire.VALUE, copy=False).view(np.uint8).data
            done = 0
            while done < len(part):
                done += os.pwrite(self._memory, part[done:], start + done)
            start += len(part)

    def kill(self, why: str) -> None:
        """Ends it at once; `why` is what is said of it."""
        self._killed = self._killed or why
        self._process.kill()

    def leave(self, by: float) -> None:
        """Asks it to keep what it has and to end; `gone` ends it after that time."""
        self.leave_by = by
        self.send(wire.End())

    def gone(self, now: float) -> bool:
        """Whether it has ended; what is still here after its time is killed."""
        if now >= self.leave_by:
            # Once: one that the kernel holds in a write ends when that does, and its end wakes the agent.
            self.leave_by = float("inf")
            self.kill("it did not end when asked to")
        if self._thread.is_alive():
            return False
        self.close()
        return True

    def join(self, timeout_s: float) -> None:
        """Waits for its end, and brings it about after that time."""
        self._thread.join(timeout_s)
        self.kill("it did not end when asked to")
        self._thread.join(KILLED_S)
        if not self._thread.is_alive():
            self.close()

    def close(self) -> None:
        """Of a process that has ended."""
        self._thread.join()
        if not self._closed:
            self._closed = True
            self._socket.close()
            os.close(self._memory)

    def _listen(self) -> None:
        while data := self._received():
            try:
                self._heard.put(wire.read_message(data))
            except wire.GarbledError as error:
                self.kill(f"what it says cannot be read: {error}")
                break
            self._wake()
        code = self._process.wait()
        self._heard.put(ended(code, self._killed))
        self._wake()

    def _received(self) -> bytes:
        try:
            return self._socket.recv(wire.MAX_BYTES)
        except OSError:
            return b""


def launcher(settings: AgentSettings, base: Path, state: Path, wake: Callable[[], None]) -> Launch:
    """Starts children for an agent. base: the folder of its settings. state: its state folder."""

    def launch() -> ChildProcess:
        # Where nothing is set, what the system has free now: it must not fall for a leak of ours.
        memory_mib = available_mib(settings.limits.memory_mib) or 0
        disk_mib = settings.limits.disk_mib
        where = str(state.resolve()), str(base.resolve())
        start = wire.Start(*where, disk_mib, memory_mib, settings.training, settings.data, settings.personal)
        return ChildProcess(start, wake)

    return launch


def ended(code: int, killed: str = "") -> Ended:
    """What an exit code means. killed: why we ended it ourselves."""
    if killed:
        return Ended("hung", killed)
    if code >= 0:
        return Ended("crashed", f"it ended with code {code}; its log says why")
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    said = f"it was ended by signal {-code} ({name})"
    match -code:
        case signal.SIGKILL:
            return Ended("killed", f"{said}, as the kernel does where memory is short")
        case signal.SIGXCPU:
            return Ended("cpu", f"{said}: steps took far longer than before")
        case _:
            return Ended("crashed", said)
