"""What an agent keeps: boot counter, task in hand, outbox and residual, in one SQLite file that survives power cuts."""

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
from protocol.disk import LOCAL, Disk, is_disk_trouble
from protocol.errors import ConfigurationError
from protocol.failpoints import reached
from protocol.messages import Offer, Task
from protocol.records import RecordError, read_record, write_record

T = TypeVar("T")

SCHEMA = 2
# Two of a million starts of one device are the same with a chance of one in three hundred; only two that also share
# their boot would matter. A count of updates fits above.
INSTANCE_BITS = 47

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
CREATE TABLE task (one INTEGER PRIMARY KEY CHECK (one = 1), message BLOB NOT NULL);
CREATE TABLE outbox (
    boot INTEGER NOT NULL, sequence INTEGER NOT NULL, task TEXT NOT NULL UNIQUE, digest BLOB NOT NULL,
    offer BLOB NOT NULL, layout BLOB NOT NULL, residual BLOB NOT NULL, PRIMARY KEY (boot, sequence));
CREATE TABLE residual (
    layout BLOB PRIMARY KEY, vector BLOB NOT NULL, run TEXT NOT NULL DEFAULT '', round INTEGER NOT NULL DEFAULT 0);
CREATE TABLE settled (
    verdict TEXT NOT NULL, reason TEXT NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (verdict, reason));
INSERT INTO meta VALUES ('schema', 2), ('boot', 0), ('sequence', 0);
"""

# What brings a store of the schema before up to each schema.
_STEPS = {
    2: (
        "ALTER TABLE residual ADD COLUMN run TEXT NOT NULL DEFAULT ''; "
        "ALTER TABLE residual ADD COLUMN round INTEGER NOT NULL DEFAULT 0;"
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
            self.database = _open_database(root / "agent.sqlite", disk)
        except (ConfigurationError, OSError, sqlite3.Error):
            self._unlock()
            raise
        try:
            self.blobs = BlobStore(root / "blobs", limit_bytes, disk)
            with self.database:
                self.database.execute("UPDATE meta SET value = value + 1 WHERE key = 'boot'")
                # Updates are named by boot and sequence for ever. A disk that was replaced, copied or put back from a
                # backup counts boots that there were already, so each start begins where no other has been.
                self.database.execute("UPDATE meta SET value = ? WHERE key = 'sequence'", (self.instance,))
            self.boot = self._meta("boot")
        except (OSError, sqlite3.Error):
            self.close()
            raise

    def close(self) -> None:
        self.database.close()
        self._unlock()

    # The task in hand

    def task(self) -> Task | None:
        row = self.database.execute("SELECT message FROM task").fetchone()
        return _load(Task, row[0]) if row else None

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

    def keep_update(self, offer: Offer, layout: bytes, residual: npt.NDArray[np.float32]) -> None:
        """Puts an update, whose payload is already a durable blob, in the outbox, and lets go of its task: one
        transaction, so that a task yields one update however often the agent is killed.

        `residual` is what error feedback will carry on once, and only if, the update is accepted.
        """
        with self.database:
            self.database.execute(
                "INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    offer.update_boot,
                    offer.update_sequence,
                    offer.task,
                    offer.blob.digest,
                    _dump(offer),
                    layout,
                    residual.astype("<f4").tobytes(),
                ),
            )
            self.database.execute("DELETE FROM task")
            reached("agent.update-keeping")
        reached("agent.update-kept")

    def outbox(self) -> tuple[Offer, ...]:
        """The offers still waiting for their receipt, oldest first."""
        rows = self.database.execute("SELECT offer FROM outbox ORDER BY boot, sequence").fetchall()
        return tuple(_load(Offer, row[0]) for row in rows)

    def settle(self, digest: bytes, task: str, *, accepted: bool, reason: str) -> Settled | None:
        """Ends the update that a receipt names: its residual takes force if it was accepted, and only then. What other
        layouts (another model or variant, other channels of a tier) left unsent goes: it would be stale when they came
        back.

        None when there is no such update, as for a receipt that came twice.
        """
        row = self.database.execute(
            "SELECT offer, layout, residual FROM outbox WHERE task = ? AND digest = ?", (task, digest)
        ).fetchone()
        if row is None:
            return None
        offer = _load(Offer, row[0])
        with self.database:
            if accepted:
                self.database.execute("DELETE FROM residual WHERE layout != ?", (row[1],))
                self.database.execute(
                    "INSERT OR REPLACE INTO residual VALUES (?, ?, ?, ?)", (row[1], row[2], offer.run, offer.round)
                )
                reached("agent.residual-settling")
            self.database.execute("DELETE FROM outbox WHERE task = ?", (task,))
            self.database.execute(
                "INSERT INTO settled VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET count = count + 1",
                ("accepted" if accepted else "rejected", reason),
            )
            reached("agent.receipt-settling")
        reached("agent.receipt-settled")
        self.blobs.remove(digest)
        return Settled(offer, accepted)

    def residual(self, layout: bytes, size: int) -> npt.NDArray[np.float32]:
        """float32[size]: what earlier updates left unsent for this layout; zeros at first."""
        row = self.database.execute("SELECT vector FROM residual WHERE layout = ?", (layout,)).fetchone()
        vector = np.frombuffer(row[0], dtype="<f4") if row else np.zeros(0, np.float32)
        return vector.astype(np.float32) if len(vector) == size else np.zeros(size, np.float32)

    def residual_from(self, layout: bytes) -> tuple[str, int] | None:
        """Run and round of the update that left it; None where there is none, or an older agent did not note it."""
        row = self.database.execute("SELECT run, round FROM residual WHERE layout = ?", (layout,)).fetchone()
        return (row[0], row[1]) if row and row[0] else None

    def has_other_residual(self, layout: bytes) -> bool:
        """Whether something is left unsent of another layout."""
        return self.database.execute("SELECT 1 FROM residual WHERE layout != ?", (layout,)).fetchone() is not None

    def _meta(self, key: str) -> int:
        return int(self.database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0])


def _make_folder(root: Path, disk: Disk) -> None:
    try:
        disk.make_folder(root)
    except OSError as error:
        raise ConfigurationError(
            f"{root}: the state folder cannot be made ({error.strerror}); set `state` to a folder this user may write"
        ) from None


def _open_database(path: Path, disk: Disk) -> sqlite3.Connection:
    database = disk.database(path, "DEFERRED")
    try:
        # FULL, because in WAL mode NORMAL may take back committed transactions at a power cut.
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        if not database.execute("SELECT name FROM sqlite_master WHERE name = 'meta'").fetchone():
            database.executescript(f"BEGIN; {_TABLES} COMMIT;")
        schema = int(database.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()[0])
        if schema < SCHEMA:
            steps = "".join(_STEPS[number] for number in range(schema + 1, SCHEMA + 1))
            database.executescript(f"BEGIN; {steps} UPDATE meta SET value = {SCHEMA} WHERE key = 'schema'; COMMIT;")
    except sqlite3.DatabaseError as error:
        database.close()
        if is_disk_trouble(error):
            raise
        raise ConfigurationError(
            f"{path}: cannot be used ({error}); nothing was changed. Restore it from a backup, or move it away to "
            "start afresh: updates that were not yet received are lost with it"
        ) from None
    if schema > SCHEMA:
        database.close()
        raise ConfigurationError(
            f"{path}: written by a newer edge-agent (schema {schema}, this one knows {SCHEMA}); upgrade this agent"
        )
    return database


def _dump(record: object) -> bytes:
    return cbor2.dumps(write_record(record))


def _load(cls: type[T], data: bytes) -> T:
    try:
        return read_record(cls, cbor2.loads(data), ignore_unknown=True)
    except (RecordError, cbor2.CBORDecodeError, ValueError) as error:
        raise ConfigurationError(f"agent.sqlite: damaged record ({error}); move the state folder away") from None
