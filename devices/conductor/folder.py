"""Where a fleet that runs is: its folder, and the index of fleets by which commands in another terminal find it.

An entry of the index is locked by the conductor for as long as it lives, so that a lock says more than a process id.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from devices.fleet.plan import EngineName
from devices.workspace import Claim
from protocol.errors import ConfigurationError, NothingToDoError
from protocol.records import RecordError, read_record, write_record

RECORD = "record.json"
REPORT = "report.html"
SETTINGS = "coordinator.toml"
SOCKET = "control.sock"
CLAIM = Claim(
    marker=".sparsefleet-fleet",
    made=("devices", "coordinator", "trust", "logs", SETTINGS, "test.npz", RECORD, REPORT, "report.json", SOCKET),
    who="fleet",
)


@dataclass(frozen=True, slots=True)
class Process:
    """A process of ours, by its id and the time of its start, which together are nobody else's."""

    pid: int
    ticks: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What the index says of a fleet. light: whether it also has plain processes beside its engine's devices.

    processes: those that `up` started itself, its own included.
    """

    fleet: str
    folder: str
    engine: EngineName
    light: bool = False
    processes: tuple[Process, ...] = ()


@dataclass(slots=True)
class Noted:
    """An entry in the index, as long as its lock is ours."""

    file: IO[str]
    entry: Entry

    def add(self, pids: Iterable[int]) -> None:
        """Those that still run are known from now on."""
        found = tuple(one for one in map(process, pids) if one is not None)
        known = self.entry.processes
        self.entry = replace(self.entry, processes=tuple(dict.fromkeys(known + found)))
        note(self.file, self.entry)


def default_folder(fleet: str) -> Path:
    return Path(f"fleet-{fleet}")


def index_folder() -> Path:
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "sparsefleet" / "fleets"


@contextmanager
def entered(entry: Entry) -> Iterator[IO[str]]:
    """Takes the fleet's name; yields what `note` writes to. The entry stays: `leave` removes it when all is gone.

    Raises ConfigurationError where a fleet of that name runs, or has left something behind.
    """
    path = index_folder() / f"{entry.fleet}.json"
    with _opened(path) as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = _read(path)
            where = f" in {found.folder}" if found else ""
            raise ConfigurationError(
                f"fleet {entry.fleet!r} is running already{where}; fleet-emulate down {entry.fleet} ends it, "
                "or give this one another name"
            ) from None
        if os.fstat(file.fileno()).st_nlink == 0:
            # Between our opening it and locking it, its fleet took its entry away: nobody would find ours in it.
            raise ConfigurationError(f"fleet {entry.fleet!r} has just ended; call it again")
        if (found := _read(path)) is not None:
            raise ConfigurationError(
                f"fleet {entry.fleet!r} was left in {found.folder}; fleet-emulate down {entry.fleet} takes it away, "
                "or give this one another name"
            )
        note(file, entry)
        yield file


def _opened(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(
            f"{path.parent}: the index of fleets cannot be written there ({error.strerror}); name a folder that you "
            "can write to by XDG_STATE_HOME"
        ) from None


def note(file: IO[str], entry: Entry) -> None:
    """Writes down what there is now, before anybody may have to clean it up."""
    file.seek(0)
    file.truncate()
    json.dump(write_record(entry), file)
    file.flush()


def leave(fleet: str) -> None:
    (index_folder() / f"{fleet}.json").unlink(missing_ok=True)


def entries() -> tuple[Entry, ...]:
    """All fleets that run or have left something behind, by name."""
    folder = index_folder()
    found = [_read(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    return tuple(entry for entry in found if entry is not None)


def find(fleet: str | None) -> Entry:
    """The entry of a fleet; without a name, of the only one. Raises NothingToDoError and ConfigurationError."""
    known = entries()
    if fleet is None:
        if len(known) > 1:
            raise ConfigurationError(f"fleet: name one of {', '.join(entry.fleet for entry in known)}")
        if not known:
            raise NothingToDoError("no fleet runs here; fleet-emulate up FLEET.toml starts one")
        return known[0]
    for entry in known:
        if entry.fleet == fleet:
            return entry
    names = ", ".join(entry.fleet for entry in known)
    raise NothingToDoError(f"fleet {fleet!r} does not run here{f'; these do: {names}' if names else ''}")


def conducted(fleet: str) -> bool:
    """Whether the fleet's conductor lives."""
    try:
        with (index_folder() / f"{fleet}.json").open() as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def process(pid: int) -> Process | None:
    """The process of that id as it is now; None where there is none, or one that has only to be buried."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else Process(pid, int(fields[19]))


def _read(path: Path) -> Entry | None:
    try:
        return read_record(Entry, json.loads(path.read_text(encoding="utf-8")), ignore_unknown=True)
    except (OSError, ValueError, RecordError):
        return None
