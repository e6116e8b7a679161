"""`fleet-emulate down`: a fleet ends, by its conductor's hand, or, where that has died, by ours."""

import contextlib
import os
import signal
import time
from pathlib import Path

from devices.conductor import folder
from devices.conductor.control import ask
from devices.conductor.engines import known_engines
from devices.conductor.looking import engines_of
from devices.engines.engine import EngineError
from protocol.errors import NothingToDoError, SparsefleetError, UnreachableError

# In which devices end, the record is written and the engine takes away what there was.
_ORDERLY_S = 120.0
_SOON_S = 10.0
_POLL_S = 0.05


def take_down(name: str | None) -> list[str]:
    """The fleets that were taken away; without a name the only one. Raises NothingToDoError where there is none."""
    try:
        entry = folder.find(name)
    except NothingToDoError:
        if name is None or not _remove_unknown(name):
            raise
        return [name]
    if folder.conducted(entry.fleet):
        _ask_to_end(entry)
    for one in entry.processes:
        _end(one)
    for engine in engines_of(entry):
        engine.remove(entry.fleet)
    (Path(entry.folder) / folder.SOCKET).unlink(missing_ok=True)
    folder.leave(entry.fleet)
    return [entry.fleet]


def _remove_unknown(name: str) -> bool:
    """A fleet that only an engine knows of: its entry was lost."""
    found = []
    for engine in known_engines():
        # One that is not here has nothing.
        with contextlib.suppress(EngineError):
            if name in engine.fleets():
                found.append(engine)
    for engine in found:
        engine.remove(name)
    return bool(found)


def _ask_to_end(entry: folder.Entry) -> None:
    """As a conductor ends by itself; one that cannot is told by signals."""
    try:
        ask(Path(entry.folder), {"do": "down"})
    except UnreachableError:
        for one in entry.processes:
            _signal(one, signal.SIGTERM)
    if not _gone(entry.fleet, _ORDERLY_S):
        for one in entry.processes:
            _signal(one, signal.SIGKILL)
        if not _gone(entry.fleet, _SOON_S):
            raise SparsefleetError(f"fleet {entry.fleet!r}: its conductor does not end; look at what holds it")
    # It has let go of the name, and has an exit code to end with.
    for one in entry.processes:
        _await_end(one)


def _gone(fleet: str, patience_s: float) -> bool:
    end = time.monotonic() + patience_s
    while folder.conducted(fleet):
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True


def _end(one: folder.Process) -> None:
    """SIGTERM, by which a coordinator ends its broker too, then SIGKILL."""
    _signal(one, signal.SIGTERM)
    _await_end(one)
    _signal(one, signal.SIGKILL)


def _await_end(one: folder.Process) -> None:
    end = time.monotonic() + _SOON_S
    while folder.process(one.pid) == one and time.monotonic() < end:
        time.sleep(_POLL_S)


def _signal(one: folder.Process, number: signal.Signals) -> None:
    """To that process, and no later one of its number."""
    if folder.process(one.pid) == one:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.pid, number)
