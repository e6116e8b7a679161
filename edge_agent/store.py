"""What an agent keeps: boot counter, task, outbox, residual, momentum; in one SQLite file that survives power cuts."""

import logging
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cbor2
import numpy as np
import numpy.typing as npt

from protocol.blobs import BlobStore
from protocol.database import SEAL_BYTES, check_before_writing, damage_named, damaged, sealed, unsealed
from protocol.disk import LOCAL, Disk, exists, is_disk_trouble
from protocol.errors import ConfigurationError, DamagedError
from protocol.failpoints import reached
from protocol.messages import Offer, Task
from protocol.records import RecordError, read_record, write_record

log = logging.getLogger("edge-agent")

T = TypeVar("T")

FILE = "agent.sqlite"
# Between a vector and its seal, so that its length tells it from a vector without.
_SEALED = b"\0"
# What it costs to do without a state folder.
LOST = "an update that was not yet received is lost with it"

SCHEMA = 3
# Two of a million starts of one device are the same with a chance of one in three hundred; only two that also share
# their boot would matter. A count of updates fits above.
INSTANCE_BITS = 47

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE task (one INTEGER PRIMARY KEY CHECK (one = 1), message BLOB NOT NULL);
CREATE TABLE outbox (
    boot INTEGER NOT NULL, sequence INTEGER NOT NULL, task TEXT NOT NULL UNIQUE, digest BLOB NOT NULL,
    offer BLOB NOT NULL, layout BLOB NOT NULL, residual BLOB NOT NULL, momentum BLOB, PRIMARY KEY (boot, sequence));
CREATE TABLE momentum (layout BLOB PRIMARY KEY, memory BLOB NOT NULL);
CREATE TABLE residual (
    layout BLOB PRIMARY KEY, vector BLOB NOT NULL, run TEXT NOT NULL DEFAULT '', round INTEGER NOT NULL DEFAULT 0);
CREATE TABLE settled (
    verdict TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (verdict, reason));
INSERT INTO meta VALUES ('schema', 3), ('boot', 0), ('sequence', 0);
"""

# What is read, by name: where a name was altered on the disk it must be found out before there is work.
_READ = (
    "key, value FROM meta",
    "one, message FROM task",
    "boot, sequence, task, digest, offer, layout, residual, momentum FROM outbox",
    "layout, memory FROM momentum",
    "layout, vector, run, round FROM residual",
    "verdict, reason, count FROM settled",
)

# What brings a store of the schema before up to each schema.
_STEPS = {
    2: (
        "ALTER TABLE residual ADD COLUMN run TEXT NOT NULL DEFAULT ''; "
        "ALTER TABLE residual ADD COLUMN round INTEGER NOT NULL DEFAULT 0;"
    ),
    3: (
        "ALTER TABLE outbox ADD COLUMN momentum BLOB; "
        "CREATE TABLE momentum (layout BLOB PRIMARY KEY, memory BLOB NOT NULL);"
    ),
}


@dataclass(frozen=True, slots=True)
class Settled:
    """An update that left the outbox by a receipt."""

    offer: Offer
    accepted: bool


class AgentStore:
    """The state folder of one agent. Only one process may have it open.

    Raises ConfigurationError when another agent has it, or when it is damaged or of a newer version. draw: a random
    number of so many bits, for `instance`, which no other start of any agent has.
    """

    def __init__(
        self, root: Path, limit_bytes: int, disk: Disk = LOCAL, draw: Callable[[int], int] = secrets.randbits
    ) -> None:
        self.instance = draw(INSTANCE_BITS)
        _make_folder(root, disk)
        unlock = disk.lock(root / "lock")
        if unlock is None:
            raise ConfigurationError(
                f"{root}: another edge-agent is using this state folder; stop it or set another `state`"
            )
        self._unlock = unlock
        try:
            self.database = _open_database(root / FILE, disk)
        except (ConfigurationError, OSError, sqlite3.Error):
            self._unlock()
            raise
        try:
            self.blobs = BlobStore(root / "blobs", limit_bytes, disk)
            # What no look at the file finds, the first write may.
            with damage_named(root / FILE, LOST), self.database:
                self.database.execute("UPDATE meta SET value = value + 1 WHERE key = 'boot'")
                # Updates are named by boot and sequence for ever. A disk that was replaced, copied or put back from a
                # backup counts boots that there were already, so each start begins where no other has been.
                self.database.execute("UPDATE meta SET value = ? WHERE key = 'sequence'", (self.instance,))
            self.boot = self._meta("boot")
        except (DamagedError, OSError, sqlite3.Error):
            self.close()
            raise

    def close(self) -> None:
        self.database.close()
        self._unlock()

    # The task in hand

    def task(self) -> Task | None:
        row = self.database.execute("SELECT message FROM task").fetchone()
        return load_sealed(Task, row[0]) if row else None

    def remember_task(self, task: Task) -> None:
        with self.database:
            self.database.execute("INSERT OR REPLACE INTO task VALUES (1, ?)", (_dump(task),))

    def forget_task(self) -> None:
        with self.database:
            self.database.execute("DELETE FROM task")

    # The outbox

    def next_sequence(self) -> int:
        with self.database:
            self.database.execute("UPDATE meta SET value = value + 1 WHERE key = 'sequence'")
        return self._meta("sequence")

    def keep_update(
        self, offer: Offer, layout: bytes, residual: npt.NDArray[np.float32], momentum: bytes | None = None
    ) -> None:
        """Puts an update, whose payload is already a durable blob, in the outbox, and lets go of its task: one
        transaction, so that a task yields one update however often the agent is killed.

        `residual` is what error feedback will carry on once, and only if, the update is accepted; `momentum` likewise
        (edge_agent/momentum.py), None of an optimiser that carries none.
        """
        with self.database:
            self.database.execute(
                "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    offer.update_boot,
                    offer.update_sequence,
                    offer.task,
                    offer.blob.digest,
                    _dump(offer),
                    layout,
                    sealed(residual.astype("<f4").tobytes() + _SEALED),
                    momentum,
                ),
            )
            self.database.execute("DELETE FROM task")
            reached("agent.update-keeping")
        reached("agent.update-kept")

    def outbox(self) -> tuple[Offer, ...]:
        """The offers still waiting for their receipt, oldest first."""
        rows = self.database.execute("SELECT offer FROM outbox ORDER BY boot, sequence").fetchall()
        return tuple(load_sealed(Offer, row[0]) for row in rows)

    def settle(self, digest: bytes, task: str, *, accepted: bool, reason: str) -> Settled | None:
        """Ends the update that a receipt names: its residual and momentum take force if it was accepted, and only then.
        What other layouts (another model or variant, other channels of a tier) left goes: it would be stale when they
        came back.

        None when there is no such update, as for a receipt that came twice.
        """
        # By what each offer says of itself, which is sealed.
        rows = self.database.execute("SELECT rowid, offer, layout, residual, momentum FROM outbox").fetchall()
        found = [(row[0], load_sealed(Offer, row[1]), *row[2:]) for row in rows]
        waiting = [entry for entry in found if (entry[1].task, entry[1].blob.digest) == (task, digest)]
        if not waiting:
            return None
        row_id, offer, layout, residual, momentum = waiting[0]
        with self.database:
            if accepted:
                self.database.execute("DELETE FROM residual WHERE layout != ?", (layout,))
                self.database.execute(
                    "INSERT OR REPLACE INTO residual VALUES (?, ?, ?, ?)", (layout, residual, offer.run, offer.round)
                )
                # Of another optimiser, or of none: what it left is of a course that the fleet is no more on.
                self.database.execute("DELETE FROM momentum")
                if momentum is not None:
                    self.database.execute("INSERT INTO momentum VALUES (?, ?)", (layout, momentum))
                reached("agent.residual-settling")
            self.database.execute("DELETE FROM outbox WHERE rowid = ?", (row_id,))
            self.database.execute(
                "INSERT INTO settled VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
                ("accepted" if accepted else "rejected", reason),
            )
            reached("agent.receipt-settling")
        reached("agent.receipt-settled")
        self.blobs.remove(digest)
        return Settled(offer, accepted)

    def residual(self, layout: bytes, size: int) -> npt.NDArray[np.float32]:
        """float32[size]: what earlier updates left unsent for this layout; zeros at first, and where it was altered."""
        row = self.database.execute("SELECT vector FROM residual WHERE layout = ?", (layout,)).fetchone()
        data: bytes = row[0] if row else b""
        # By an older agent there are the values alone.
        if len(data) % 4:
            vector = unsealed(data)
            if vector is None:
                log.error("residual let go: it was altered on this disk since it was kept; check the disk")
            data = b"" if vector is None else vector[: -len(_SEALED)]
        return np.frombuffer(data, "<f4").astype(np.float32) if len(data) == 4 * size else np.zeros(size, np.float32)

    def momentum(self, layout: bytes) -> bytes | None:
        """What the last accepted update of this layout left, as it was kept; None where there is none."""
        row = self.database.execute("SELECT memory FROM momentum WHERE layout = ?", (layout,)).fetchone()
        return row[0] if row else None

    def residual_from(self, layout: bytes) -> tuple[str, int] | None:
        """Run and round of the update that left it; None where there is none, or an older agent did not note it."""
        row = self.database.execute("SELECT run, round FROM residual WHERE layout = ?", (layout,)).fetchone()
        return (row[0], row[1]) if row and row[0] else None

    def has_other_residual(self, layout: bytes) -> bool:
        """Whether something is left unsent of another layout."""
        return self.database.execute("SELECT 1 FROM residual WHERE layout != ?", (layout,)).fetchone() is not None

    def _meta(self, key: str) -> int:
        return _number(self.database, key, self.blobs.root.parent / FILE)


def _make_folder(root: Path, disk: Disk) -> None:
    try:
        disk.make_folder(root)
    except OSError as error:
        raise ConfigurationError(
            f"{root}: the state folder cannot be made ({error.strerror}); set `state` to a folder this user may write"
        ) from None


def _open_database(path: Path, disk: Disk) -> sqlite3.Connection:
    if exists(disk, path) and not disk.size(path) and disk.names(path.parent / "blobs"):
        raise damaged(path, "it is empty, and blobs/ holds what it named", LOST)
    check_before_writing(path, LOST, lambda sql: _check_schema(sql, path))
    database = disk.database(path, "DEFERRED")
    try:
        # FULL, because in WAL mode NORMAL may take back committed transactions at a power cut.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if not database.execute("SELECT name FROM sqlite_master").fetchone():
            database.executescript(f"BEGIN; {_TABLES} COMMIT;")
            disk.sync(path.parent)
        schema = _number(database, "schema", path)
        if schema < 1:
            raise damaged(path, f"its schema is {schema}", LOST)
        if schema < SCHEMA:
            steps = "".join(_STEPS[number] for number in range(schema + 1, SCHEMA + 1))
            database.executescript(f"BEGIN; {steps} UPDATE meta SET value = {SCHEMA} WHERE key = 'schema'; COMMIT;")
        for columns in _READ:
            database.execute(f"SELECT {columns} LIMIT 0")
    except (sqlite3.DatabaseError, DamagedError) as error:
        database.close()
        if isinstance(error, DamagedError) or is_disk_trouble(error):
            raise
        raise damaged(path, error, LOST) from None
    return database


def _check_schema(database: sqlite3.Connection, path: Path) -> None:
    if not database.execute("SELECT name FROM sqlite_master").fetchone():
        return
    schema = _number(database, "schema", path)
    if schema > SCHEMA:
        raise ConfigurationError(
            f"{path}: written by a newer edge-agent (schema {schema}, this one knows {SCHEMA}); upgrade this agent"
        )


def _number(database: sqlite3.Connection, key: str, path: Path) -> int:
    row = database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    if row is None or not isinstance(row[0], int):
        raise damaged(path, f"its {key} is gone", LOST)
    return row[0]


def _dump(record: object) -> bytes:
    """CBOR whose last four bytes, in a field that a reader need not know, are the CRC-32 of all before them."""
    return sealed(cbor2.dumps({**write_record(record), "seal": bytes(SEAL_BYTES)})[:-SEAL_BYTES])


def load_sealed(cls: type[T], data: bytes) -> T:
    """Raises DamagedError."""
    try:
        fields = cbor2.loads(data)
        # Without the seal it is an older agent's.
        if isinstance(fields, dict) and "seal" in fields and unsealed(data) is None:
            raise ValueError("its CRC-32 differs")
        return read_record(cls, fields, ignore_unknown=True)
    except (RecordError, cbor2.CBORDecodeError, ValueError) as error:
        raise damaged(Path(FILE), f"a stored {cls.__name__.lower()}: {error}", LOST) from None
