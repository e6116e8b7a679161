"""The engine for machines without containers: a device is a process and its children, limited as a process can be.

What it knows of a device is a file in a folder of this user's, so that a command from another terminal finds the
device, and never takes a later process of the same number for it.
"""

import contextlib
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from devices.engines.engine import Condition, EngineError, Finding, InForce, Inside, Limits, Start
from devices.engines.sessions import Session

# Waits for a line, so that limits and our note of it are there before it runs; if we die first, it ends unseen.
_GATE = ("sh", "-c", 'read -r _ && cd "$0" && exec "$@" < /dev/null')
_POLL_S = 0.02
_WHY = {
    "cores": "a share of the processor's time needs a container; this is a plain process",
    "memory_mib": "a limit for all of a device needs a container; each of its processes has this one (RLIMIT_DATA)",
    "disk_mib": "a disk of its own needs a container; its state lies on this machine's",
}


@dataclass(frozen=True, slots=True)
class Note:
    """What is kept of a device. exit_code and what follows: of its last run, as far as somebody saw it end."""

    folder: str
    log: str
    limits: Limits
    environment: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    session: Session | None = None
    started_at: float | None = None
    exit_code: int | None = None
    cpu_s: float = 0.0
    peak_mib: float | None = None


class Processes:
    """Devices as plain processes. home: where notes are kept; by default with this user's other state."""

    name = "processes"

    def __init__(self, home: Path | None = None) -> None:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        self._home = home or state / "sparsefleet" / "processes"
        # Those that we started, for only their parent can wait for them.
        self._children: dict[tuple[str, str], subprocess.Popen[bytes]] = {}

    def check(self) -> tuple[Finding, ...]:
        """What it cannot do is a warning: it needs nothing."""
        linux = sys.platform.startswith("linux")
        return (
            Finding(
                "processes",
                "ok" if linux else "error",
                "devices are plain processes of this user" if linux else f"{sys.platform} has no /proc",
                "" if linux else "run the fleet on Linux",
            ),
            Finding(
                "limits",
                "warning",
                "processor and disk are not limited, memory by process alone; devices share this machine's loopback",
                "install podman and run as root, for limits that hold",
            ),
        )

    def prepare(self, start: Start) -> None:
        if self._path(start.fleet, start.device).exists():
            raise EngineError(
                f"{start.fleet}/{start.device} is there already; take it away with fleet-emulate down {start.fleet}"
            )
        log = start.state.parent / f"{start.device}.log"
        self._write(start.fleet, start.device, Note(str(start.state), str(log), start.limits, dict(start.environment)))

    def inside(self, start: Start) -> Inside:
        return Inside(start.etc, start.state, start.data)

    def start(self, start: Start, words: Sequence[str]) -> None:
        note = self._note(start.fleet, start.device)
        note = replace(note, limits=start.limits, environment=dict(start.environment), words=tuple(words))
        self._begin(start.fleet, start.device, note)

    def run(self, start: Start, words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        pipe = subprocess.PIPE
        child = _spawn(words, str(start.state), dict(start.environment), start.limits, pipe, pipe)
        try:
            out, errors = child.communicate(b"\n", timeout_s)
        except subprocess.TimeoutExpired:
            raise EngineError(f"{start.device}: {' '.join(words)} took more than {timeout_s:g} s") from None
        finally:
            _end(child)
        return subprocess.CompletedProcess(tuple(words), _code(child.returncode), out, errors)

    def listen(self, fleet: str, device: str, port: int) -> socket.socket:
        """On a free port: all devices share this machine's loopback."""
        self._note(fleet, device)
        return socket.create_server(("127.0.0.1", 0))

    def in_force(self, fleet: str, device: str) -> InForce:
        asked = self._note(fleet, device).limits
        return InForce(Limits(), {name: why for name, why in _WHY.items() if getattr(asked, name) is not None})

    def throttle(self, fleet: str, device: str, cores: float | None) -> None:
        raise EngineError(f"{fleet}/{device} cannot be throttled: {_WHY['cores']}")

    def kill(self, fleet: str, device: str) -> None:
        session = self._note(fleet, device).session
        if session is not None:
            session.kill()
            self._settle(fleet, device)

    def cut_power(self, fleet: str, device: str) -> bool:
        """A kill: what a process wrote is with this machine's kernel, and stays."""
        self.kill(fleet, device)
        return False

    def stop(self, fleet: str, device: str, grace_s: float) -> None:
        session = self._note(fleet, device).session
        if session is None:
            return
        session.ask_to_end()
        end = time.monotonic() + grace_s
        while session.running() and time.monotonic() < end:
            time.sleep(_POLL_S)
        self.kill(fleet, device)

    def again(self, fleet: str, device: str) -> None:
        note = self._settle(fleet, device)
        if not note.words:
            raise EngineError(f"{fleet}/{device} was never started")
        self._begin(fleet, device, note)

    def condition(self, fleet: str, device: str) -> Condition:
        if not self._path(fleet, device).exists():
            return Condition("absent")
        note = self._settle(fleet, device)
        if note.session is None:
            return Condition("created")
        if not note.session.running():
            return Condition("ended", note.exit_code, False, note.started_at, note.cpu_s, None, note.peak_mib)
        now, peak = note.session.memory_mib()
        return Condition("running", None, False, note.started_at, note.session.cpu_s(), now, peak)

    def logs(self, fleet: str, device: str, *, follow: bool = False) -> Sequence[str]:
        return ("tail", "-n", "+1", *(("-F",) if follow else ()), self._note(fleet, device).log)

    def execute(self, fleet: str, device: str, words: Sequence[str], *, terminal: bool = False) -> Sequence[str]:
        """A terminal is the caller's own."""
        note = self._note(fleet, device)
        return ("env", "-C", note.folder, *(f"{name}={value}" for name, value in note.environment.items()), *words)

    def devices(self, fleet: str) -> tuple[str, ...]:
        return tuple(sorted(path.stem for path in (self._home / fleet).glob("*.json")))

    def fleets(self) -> tuple[str, ...]:
        return tuple(sorted({path.parent.name for path in self._home.glob("*/*.json")}))

    def remove(self, fleet: str) -> None:
        """Its log and its state are the caller's folders, and stay."""
        for device in self.devices(fleet):
            self.kill(fleet, device)
            self._path(fleet, device).unlink()
        with contextlib.suppress(FileNotFoundError):
            (self._home / fleet).rmdir()

    def _begin(self, fleet: str, device: str, note: Note) -> None:
        """Starts it behind the gate, notes it, and opens the gate."""
        if note.session is not None and note.session.members():
            raise EngineError(f"{fleet}/{device} runs already")
        # A log in a folder that was taken away is nobody's.
        with Path(note.log).open("ab") as log:
            child = _spawn(note.words, note.folder, note.environment, note.limits, log.fileno(), subprocess.STDOUT)
        session = Session.led_by(child.pid)
        now = replace(note, session=session, started_at=time.time(), exit_code=None, cpu_s=0.0, peak_mib=None)
        self._write(fleet, device, now)
        self._children[fleet, device] = child
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.close()

    def _settle(self, fleet: str, device: str) -> Note:
        """The note of a device, with how it ended if it has; waits for a child of ours."""
        note = self._note(fleet, device)
        session = note.session
        if session is None or session.running():
            return note
        # As in a container, where nothing outlives the first process.
        session.kill()
        child = self._children.pop((fleet, device), None)
        if child is None:
            seen = session.exit_status()
            return note if seen is None else replace(note, exit_code=_code(os.waitstatus_to_exitcode(seen)))
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        cpu_s = used.ru_utime + used.ru_stime
        # The peak of its largest process: that of all at once was not seen.
        note = replace(note, exit_code=_code(child.returncode), cpu_s=cpu_s, peak_mib=used.ru_maxrss / 1024)
        self._write(fleet, device, note)
        return note

    def _path(self, fleet: str, device: str) -> Path:
        return self._home / fleet / f"{device}.json"

    def _note(self, fleet: str, device: str) -> Note:
        try:
            read: dict[str, Any] = json.loads(self._path(fleet, device).read_text())
        except FileNotFoundError:
            raise EngineError(f"{fleet}/{device}: there is no such device among this user's processes") from None
        session = read["session"]
        kept = {"words": tuple(read["words"]), "limits": Limits(**read["limits"])}
        return Note(**{**read, **kept, "session": Session(**session) if session else None})

    def _write(self, fleet: str, device: str, note: Note) -> None:
        path = self._path(fleet, device)
        # Its environment may hold what others must not read.
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        half = path.with_suffix(".half")
        half.write_text(json.dumps(asdict(note)))
        half.replace(path)


def _spawn(
    words: Sequence[str], folder: str, environment: dict[str, str], limits: Limits, out: int, errors: int
) -> subprocess.Popen[bytes]:
    """A process in a session of its own that waits at the gate, with its limits set."""
    if shutil.which(words[0]) is None:
        raise EngineError(f"{words[0]}: no such command here; install what has it, or name its path")
    child = subprocess.Popen(
        (*_GATE, folder, *words),
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=errors,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        start_new_session=True,
    )
    if limits.memory_mib is not None:
        size = limits.memory_mib << 20
        resource.prlimit(child.pid, resource.RLIMIT_DATA, (size, size))
    resource.prlimit(child.pid, resource.RLIMIT_CORE, (0, 0))
    return child


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends what is left of a command and its children, and waits for it."""
    session = Session.led_by(child.pid)
    if session is not None:
        session.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            pipe.close()


def _code(code: int) -> int:
    """As a shell and a container's engine say it: 128 and a signal's number."""
    return code if code >= 0 else 128 - code
