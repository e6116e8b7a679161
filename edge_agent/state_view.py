"""A look at an agent's state folder from outside, whether the agent runs or not: nothing in it is changed."""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_agent.store import FILE, LOST, load_sealed
from protocol.blobs import read_blob
from protocol.database import damage_named
from protocol.errors import BundleError, SparsefleetError
from protocol.manifest import MANIFEST_FILE, parse_manifest
from protocol.messages import Offer, Task

TABLES = ("meta", "task", "outbox", "residual", "settled")


@dataclass(frozen=True, slots=True)
class Waiting:
    """An update in the outbox. since_s: when its payload was written, Unix seconds; None where the payload is gone."""

    offer: Offer
    since_s: float | None


@dataclass(frozen=True, slots=True)
class Kept:
    """What the store says. settled: how many updates left the outbox, by verdict and reason."""

    boot: int
    task: Task | None
    outbox: tuple[Waiting, ...]
    settled: dict[str, dict[str, int]]


@dataclass(frozen=True, slots=True)
class HeldBundle:
    """A bundle on this disk, by its folder."""

    folder: Path
    line: str
    version: int


def closed(state: Path) -> str:
    """Why this user may not look into a state folder; empty where it may, or there is none."""
    try:
        if not state.exists() or (os.access(state, os.R_OK | os.X_OK)):
            return ""
        owner = state.stat().st_uid
    except OSError as error:
        return f"{state}: {error.strerror}"
    return f"{state}: belongs to user {owner}, and this is user {os.geteuid()}, who may not use it"


def open_to_us(state: Path) -> Path:
    """The state folder. Raises SparsefleetError where this user may not look into it."""
    said = closed(state)
    if said:
        raise SparsefleetError(f"{said}; do this as the user that the agent runs as, or as root")
    return state


def running(state: Path) -> int | None:
    """The process that has a state folder open, 0 where it cannot be seen which, and None where none has.

    The lock is looked up, and only where that finds nobody is it tried for a moment, shared with others that look.
    """
    path = state / "lock"
    try:
        inode = path.stat().st_ino
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if len(words) > 5 and words[1] == "FLOCK" and words[5].rpartition(":")[2] == str(inode):
                return max(0, int(words[4]))
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return 0
    finally:
        os.close(descriptor)
    return None


def kept(state: Path) -> Kept | None:
    """What the store says; None where there is none yet. Raises SparsefleetError where it cannot be read."""
    if not (state / FILE).is_file():
        return None
    with _database(state) as sql:
        meta = dict(sql.execute("SELECT key, value FROM meta").fetchall())
        task = sql.execute("SELECT message FROM task").fetchone()
        offers = sql.execute("SELECT offer FROM outbox ORDER BY boot, sequence").fetchall()
        settled: dict[str, dict[str, int]] = {}
        for verdict, reason, count in sql.execute("SELECT verdict, reason, count FROM settled ORDER BY 1, 2"):
            settled.setdefault(verdict, {})[reason or "-"] = count
    waiting = tuple(_waiting(state, load_sealed(Offer, row[0])) for row in offers)
    return Kept(int(meta.get("boot", 0)), load_sealed(Task, task[0]) if task else None, waiting, settled)


def soundness(state: Path) -> dict[str, object]:
    """What SQLite finds in the store, and how many rows each table has. Raises SparsefleetError."""
    with _database(state) as sql:
        (found,) = sql.execute("PRAGMA quick_check(1)").fetchone()
        tables: dict[str, object] = {}
        for name in TABLES:
            # The names are ours, above.
            (tables[name],) = sql.execute(f"SELECT count(*) FROM {name}").fetchone()
    return {"quick_check": str(found), "rows": tables}


def payload(state: Path, offer: Offer) -> bytes:
    """The bytes of an update. Raises DamagedError where they are gone or others."""
    return read_blob(payload_path(state, offer))


def payload_path(state: Path, offer: Offer) -> Path:
    return state / "blobs" / offer.blob.digest.hex()


def held_bundles(state: Path) -> tuple[HeldBundle, ...]:
    """The bundles on this disk whose manifest can be read, the newest last."""
    found = []
    for path in sorted((state / "bundles").glob(f"**/{MANIFEST_FILE}"), key=_changed):
        try:
            manifest = parse_manifest(path.read_bytes())
        except (OSError, BundleError):
            continue
        found.append(HeldBundle(path.parent, manifest.line, manifest.version))
    return tuple(found)


def used_bytes(state: Path) -> int:
    """What the state folder takes of the disk."""
    total = 0
    for folder, _, names in os.walk(state):
        for name in names:
            try:
                total += Path(folder, name).lstat().st_size
            except OSError:
                # Gone meanwhile.
                continue
    return total


@contextmanager
def _database(state: Path) -> Iterator[sqlite3.Connection]:
    path = state / FILE
    uri = path.resolve().as_uri()
    with damage_named(path, LOST):
        try:
            with closing(_opened(uri, path)) as sql:
                yield sql
        except sqlite3.OperationalError as error:
            raise SparsefleetError(
                f"{path}: cannot be read ({error}); read it as the user that the agent runs as"
            ) from None


def _opened(uri: str, path: Path) -> sqlite3.Connection:
    sql = sqlite3.connect(f"{uri}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
    try:
        sql.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        sql.close()
        wal = path.with_name(path.name + "-wal")
        if wal.exists() and wal.stat().st_size:
            raise
        # A disk that is full or read-only takes no -shm file: nobody can be writing there either.
        sql = sqlite3.connect(f"{uri}?mode=ro&immutable=1", uri=True, isolation_level=None)
    return sql


def _waiting(state: Path, offer: Offer) -> Waiting:
    try:
        return Waiting(offer, payload_path(state, offer).stat().st_mtime)
    except OSError:
        return Waiting(offer, None)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def as_json(value: object) -> str:
    """Facts for programs; bytes as hexadecimal digits."""
    return json.dumps(value, default=lambda one: one.hex() if isinstance(one, bytes) else str(one))
