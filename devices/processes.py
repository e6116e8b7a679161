"""Child processes that never outlive us: each in its own group, its output in a log file, stopped with its children.

For one thread only: the kernel ties a child's life to the thread that started it.
"""

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from protocol.errors import ConfigurationError, SparsefleetError

_PR_SET_PDEATHSIG = 1
# Loaded before any fork: between fork and exec nothing may be imported.
_LIBC = ctypes.CDLL(None, use_errno=True)

# An agent or coordinator needs a moment to close its store; past this it hangs, and its store survives a kill anyway.
GRACE_S = 5.0
# Often enough for a spinner to turn.
TICK_S = 0.1


@dataclass(frozen=True, slots=True)
class Child:
    """A started process. `log` holds what it wrote; stdout is a pipe instead where it was asked for."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def exit_code(self) -> int | None:
        """None while it runs, negative for a signal."""
        return self.process.poll()

    @property
    def stdout(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout


class PartFailedError(SparsefleetError):
    """A started process ended, or hangs, before its time. The text says which, how, and ends with its log.

    what: the text without the log.
    """

    def __init__(self, child: Child, what: str | None = None) -> None:
        code = child.exit_code
        what = what or ("has ended" if code is None else f"ended early ({exit_text(code)})")
        self.what = f"{child.name} {what}"
        super().__init__(f"{self.what}; the end of {child.log}:\n{last_lines(child.log)}")
        if code == ConfigurationError.exit_code:
            self.exit_code = code


def start(
    name: str,
    command: Sequence[str],
    log: Path,
    *,
    folder: Path | None = None,
    pipe: bool = False,
    orphaned: signal.Signals = signal.SIGKILL,
    more: Mapping[str, str] | None = None,
) -> Child:
    """Starts a command in its own session, so that Ctrl-C reaches only us and we decide the order of the end.

    `orphaned` is what the kernel sends it should we die without a word. With SIGTERM it can end children of its own.
    `more` is put into its environment.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **(more or {})}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else sink,
            stderr=sink,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=_die_with_parent(os.getpid(), orphaned),  # noqa: PLW1509 - we have one thread
        )
    return Child(name, process, log)


def stop(children: Iterable[Child], grace_s: float = GRACE_S) -> None:
    """Ends all and their groups, by request and after `grace_s` by force. Returns when they are gone."""
    children = tuple(children)
    for child in children:
        _signal_group(child, signal.SIGTERM)
    end = time.monotonic() + grace_s
    for child in children:
        try:
            child.process.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal_group(child, signal.SIGKILL)
            child.process.wait()
        # What the leader left behind in its group has no one to ask it twice.
        _signal_group(child, signal.SIGKILL)
        if child.process.stdout is not None:
            child.process.stdout.close()


def wait(child: Child, tick: Callable[[], None]) -> None:
    """Waits for a command to end, calling `tick` meanwhile. Raises PartFailedError unless it went well."""
    while child.exit_code is None:
        tick()
        try:
            child.process.wait(TICK_S)
        except subprocess.TimeoutExpired:
            continue
    if child.exit_code != 0:
        raise PartFailedError(child)


def output_lines(child: Child, watched: Sequence[Child], tick: Callable[[], None], stall_s: float) -> Iterator[bytes]:
    """The lines a piped command prints until it ends well, calling `tick` meanwhile.

    Raises PartFailedError when it or one of `watched` ends otherwise, and when it says nothing for `stall_s`.
    """
    rest, heard = b"", time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        while True:
            tick()
            # Asked before we look for output: what it printed last must not be missed.
            ended = child.exit_code is not None
            ready = selector.select(TICK_S)
            data = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
            if ready and not data:
                break
            if data:
                heard = time.monotonic()
                *lines, rest = (rest + data).split(b"\n")
                yield from lines
                # Lines still in the pipe come before the end of anyone else.
                continue
            # A child of its own may still hold the pipe open.
            if ended:
                break
            for other in watched:
                if other.exit_code is not None:
                    raise PartFailedError(other)
            if time.monotonic() - heard > stall_s:
                raise PartFailedError(child, f"has said nothing for {stall_s:.0f} s")
    wait(child, tick)
    if rest:
        yield rest


def last_lines(log: Path, count: int = 12) -> str:
    """The end of a log, for a message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64_000))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(lines[-count:]) or "(its log is empty)"


def exit_text(code: int) -> str:
    """How a process ended: its exit code, or the signal's name."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _signal_group(child: Child, number: signal.Signals) -> None:
    try:
        os.killpg(child.process.pid, number)
    except (ProcessLookupError, PermissionError):
        return


def _die_with_parent(parent: int, number: signal.Signals) -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
        # The parent may have died before the line above.
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    return prepare
