"""The store: what the coordinator must not lose, in one SQLite file and two folders of blobs, for its one writer.

Accepting an update is one transaction, and so is committing a round; whatever lies on disk without its row was never
promised to anybody and is swept away at the next commit. Updates and models have folders of their own, half of the
disk limit each, so that no device can name a model's blob as its update.
"""

import secrets
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from statistics import median_low
from typing import TypeVar

from coordinator import ledger, rows
from coordinator.distillation_record import folded_of
from coordinator.norms import Norms
from coordinator.round import Phase
from coordinator.rows import (
    AcceptedUpdate,
    CarriedTask,
    Counted,
    DeviceActivity,
    ModelVersion,
    OpenedRound,
    Pace,
    RoundFigures,
    StoredTask,
)
from coordinator.schema import lock_folder, open_writer
from coordinator.settings import LimitSettings
from coordinator.traffic import Sender, Traffic
from protocol.blobs import BlobStore
from protocol.database import transaction
from protocol.disk import LOCAL, Disk
from protocol.errors import ConfigurationError, Rejection, SparsefleetError
from protocol.failpoints import reached
from protocol.messages import BlobRef, Difference, Offer, Receipt, Task

T = TypeVar("T")

# Receipts of rejections, for a device that offers again what was refused; a flood of them is not worth the disk.
MAX_REJECTED_RECEIPTS = 256
INSTANCE_BITS = 47
# An update this many rounds old is offered again by nobody who still listens.
RECEIPT_ROUNDS = 1000


def run_name() -> str:
    """A name that no other run has."""
    return uuid.uuid4().hex[:12]


class Store:
    """Opens the folder for this process alone and counts one more start (`epoch`). Raises ConfigurationError.

    wall: the time of day. run: the name of a run that begins here. draw: a random number of so many bits, for
    `instance`, which no other start of any coordinator has.
    """

    def __init__(
        self,
        state: Path,
        limits: LimitSettings,
        disk: Disk = LOCAL,
        wall: Callable[[], float] = time.time,
        run: Callable[[], str] = run_name,
        draw: Callable[[int], int] = secrets.randbits,
    ) -> None:
        self._wall, self.instance = wall, draw(INSTANCE_BITS)
        self._joined = False
        self._unlock = lock_folder(state, disk)
        self.folder = state
        try:
            self._sql = open_writer(state, disk)
            half = limits.disk_mib * (1 << 20) // 2
            self.updates = BlobStore(state / "updates", half, disk)
            self.models = BlobStore(state / "models", half, disk)
            self._keep_rounds = limits.keep_rounds
            self.run, self.epoch = self._start(run)
        except (SparsefleetError, OSError, sqlite3.Error):
            self._unlock()
            raise

    def close(self) -> None:
        self._sql.close()
        self._unlock()

    def _start(self, run: Callable[[], str]) -> tuple[str, int]:
        with self._transaction() as sql:
            sql.execute("INSERT OR IGNORE INTO meta VALUES ('run', ?)", (run(),))
            sql.execute("INSERT OR IGNORE INTO meta VALUES ('epoch', 0)")
            sql.execute("UPDATE meta SET value = value + 1 WHERE key = 'epoch'")
            sql.execute("UPDATE devices SET present = 0, resting_day = NULL")
        return str(self._meta("run")), int(self._meta("epoch"))

    def belongs_to(self, bundle_digest: bytes, bundle: str, fleet: str) -> None:
        """Ties a new store to its bundle. Raises ConfigurationError if it already belongs to another one."""
        known = self._sql.execute("SELECT value FROM meta WHERE key = 'bundle'").fetchone()
        if known is not None and bytes(known[0]) != bundle_digest:
            raise ConfigurationError(
                f"bundle: {bundle} is not the bundle that run {self.run} in this state folder was started with; "
                "set state to a new folder, or bundle to the old one"
            )
        with self._transaction() as sql:
            sql.execute("INSERT OR IGNORE INTO meta VALUES ('bundle', ?)", (bundle_digest,))
            sql.execute("INSERT OR REPLACE INTO meta VALUES ('fleet', ?)", (fleet,))

    # -- models and rounds

    def put_model(self, data: bytes) -> BlobRef:
        """Stores a model, or what goes with one, durably; older versions give way when the disk limit asks for it."""
        while not self.models.room_for(BlobRef(bytes(32), len(data))) and self._drop_oldest_model():
            pass
        blob = self.models.put(data)
        reached("coordinator.model-put")
        return blob

    def add_initial(self, model: ModelVersion) -> None:
        """Commits version 0."""
        with self._transaction() as sql:
            rows.insert_model(sql, model)

    def current(self) -> ModelVersion | None:
        """The newest version, None before the first start."""
        newest: int | None = self._sql.execute("SELECT max(version) FROM models").fetchone()[0]
        return None if newest is None else self.version(newest)

    def version(self, number: int) -> ModelVersion | None:
        """A version of which something is kept on disk, and the newest in any case."""
        return rows.model(self._sql, number)

    def structure(self, number: int) -> bytes | None:
        """What names the structure of a version that there was; None where devices worked on all of it."""
        row = self._sql.execute("SELECT structure FROM models WHERE version = ?", (number,)).fetchone()
        assert row is not None, f"there was no version {number}"
        return None if row[0] is None else bytes(row[0])

    def differences(self, number: int, keep: int) -> tuple[Difference, ...]:
        """The steps that lead to what devices hold of a version, newest last: `keep` of them, or as many as there are
        without a gap."""
        found = rows.differences(self._sql, number, keep)
        steps = takewhile(lambda row: row[1] is not None and self.models.has(row[1]), found)
        return tuple(Difference(base, BlobRef(digest, size)) for base, digest, size in steps)[::-1]

    def open_round(
        self,
        number: int,
        base_version: int,
        tasks: Mapping[str, Task],
        bytes_before: tuple[int, int],
        uptime_s: float = 0.0,
    ) -> None:
        """Begins a round with its first invitations, in one transaction. bytes_before: of the run, up and down."""
        with self._transaction() as sql:
            rows.set_uptime(sql, uptime_s)
            sql.execute(
                "INSERT INTO rounds (round, state, base_version, opened_s, up_before, down_before, opened_uptime_s) "
                "VALUES (?, 'open', ?, ?, ?, ?, ?)",
                (number, base_version, self._wall(), *bytes_before, uptime_s),
            )
            for device, task in tasks.items():
                rows.insert_task(sql, number, device, task)
            reached("coordinator.round-opening")
        reached("coordinator.round-opened")

    def opened_round(self) -> OpenedRound | None:
        row = self._sql.execute(
            "SELECT round, extensions, up_before, down_before, opened_uptime_s FROM rounds WHERE state = 'open'"
        ).fetchone()
        if row is None:
            return None
        tasks = self._sql.execute("SELECT device, phase, task FROM tasks WHERE round = ? ORDER BY device", (row[0],))
        return OpenedRound(
            number=row[0],
            extensions=row[1],
            bytes_before=(row[2], row[3]),
            tasks=tuple(StoredTask(device, phase, rows.unpack_task(task)) for device, phase, task in tasks),
            uptime_s=row[4],
        )

    def carried(self) -> tuple[CarriedTask, ...]:
        """Who still works for a closed round."""
        found = self._sql.execute(
            "SELECT device, round, opened_uptime_s FROM tasks JOIN rounds USING (round) WHERE phase = 'carried' "
            "ORDER BY round, device"
        )
        return tuple(CarriedTask(*row) for row in found)

    def task(self, number: int, device: str) -> tuple[StoredTask, Rejection] | None:
        """A device's place in a round, with the reason and detail of how it ended, as far as it did."""
        row = self._sql.execute(
            "SELECT phase, task, reason, detail FROM tasks WHERE round = ? AND device = ?", (number, device)
        ).fetchone()
        if row is None:
            return None
        return StoredTask(device, row[0], rows.unpack_task(row[1])), Rejection(row[2], row[3])

    def has_round(self, number: int) -> bool:
        return self._sql.execute("SELECT 1 FROM rounds WHERE round = ?", (number,)).fetchone() is not None

    def invite(self, number: int, device: str, task: Task) -> None:
        with self._transaction() as sql:
            rows.insert_task(sql, number, device, task)

    def replace_task(self, number: int, device: str, task: Task) -> None:
        """Says the same task anew, by other means."""
        with self._transaction() as sql:
            rows.replace_task(sql, number, device, task)

    def set_phase(self, number: int, device: str, phase: Phase, reason: str = "", detail: str = "") -> None:
        with self._transaction() as sql:
            rows.set_phase(sql, number, device, phase, reason, detail)

    def extend_round(self, number: int, late: Iterable[str], what: str) -> None:
        """Records a deadline that was moved, and why."""
        with self._transaction() as sql:
            sql.execute("UPDATE rounds SET extensions = extensions + 1 WHERE round = ?", (number,))
            sql.execute("INSERT INTO decisions VALUES (?, ?, ?)", (number, self._wall(), what))
            for device in late:
                rows.set_phase(sql, number, device, "late")

    def commit_round(
        self, number: int, model: ModelVersion, figures: RoundFigures, folded: Iterable[Counted], *, carry: bool = False
    ) -> None:
        """The round's end, its model, its server state, its figures and the fate of its set, in one transaction.

        carry: devices that are still at work keep their tasks.
        """
        with self._transaction() as sql:
            rows.insert_model(sql, model)
            rows.commit_round(sql, number, model, figures)
            rows.set_fold(sql, model.version, folded)
            rows.end_open_tasks(sql, number, carry=carry)
            sql.execute(
                "UPDATE updates SET kept = 0 WHERE fold <= ? OR (discarded IS NOT NULL AND round <= ?)",
                (number - self._keep_rounds, number - self._keep_rounds),
            )
            sql.execute("DELETE FROM receipts WHERE round < ?", (number - RECEIPT_ROUNDS,))
            reached("coordinator.round-committing")
        reached("coordinator.round-committed")

    def fate(self, number: int, device: str) -> tuple[int | None, str | None] | None:
        """The version that took an accepted update, and why it was discarded; None where there is no such update."""
        return rows.fate(self._sql, number, device)

    def discard(self, number: int, device: str, reason: str) -> None:
        """States that an accepted update will be in no fold, and why."""
        with self._transaction() as sql:
            sql.execute(
                "UPDATE updates SET discarded = ? WHERE round = ? AND device = ? AND fold IS NULL",
                (reason, number, device),
            )

    # -- updates

    @contextmanager
    def together(self) -> Iterator[None]:
        """Makes one transaction of all that is written inside: it is durable at its end, and all of it or nothing."""
        with self._transaction():
            self._joined = True
            try:
                yield
            finally:
                self._joined = False

    def receipt(self, device: str, offer: Offer) -> tuple[bytes, Receipt] | None:
        """The receipt an update of this name has had, and the digest it had it for."""
        return rows.receipt(self._sql, device, offer)

    def accept(self, device: str, offer: Offer, weight: int, norms: Norms, receipt: Receipt) -> None:
        """Takes an update whose blob is whole and durable, with its receipt, in one transaction."""
        with self._transaction() as sql:
            rows.insert_update(sql, device, offer, weight, norms)
            rows.insert_receipt(sql, device, offer, receipt)
            rows.set_phase(sql, offer.round, device, "done")
            rows.note_training(sql, device, offer)
            reached("coordinator.update-accepting")

    def reject(self, device: str, offer: Offer, number: int, receipt: Receipt, *, ends_task: bool) -> None:
        """Counts a rejected update and keeps its receipt; `ends_task` also takes the device out of the round."""
        with self._transaction() as sql:
            rows.count_rejection(sql, device, number, receipt.reason, receipt.detail)
            held = sql.execute(
                "SELECT count(*) FROM receipts r WHERE device = ? AND NOT EXISTS (SELECT 1 FROM updates u WHERE "
                "u.device = r.device AND u.update_boot = r.update_boot AND u.update_sequence = r.update_sequence)",
                (device,),
            ).fetchone()[0]
            if held < MAX_REJECTED_RECEIPTS:
                rows.insert_receipt(sql, device, offer, receipt, number)
            if ends_task:
                rows.set_phase(sql, number, device, "out", receipt.reason, receipt.detail)

    def uses(self, digest: bytes) -> bool:
        """Whether an accepted update is kept under this digest."""
        found = self._sql.execute("SELECT 1 FROM updates WHERE digest = ? AND kept = 1 LIMIT 1", (digest,)).fetchone()
        return found is not None

    def accepted(self, number: int) -> tuple[AcceptedUpdate, ...]:
        """The set that the fold of a round took, or would take now, in the order of rounds, then devices."""
        return rows.accepted(self._sql, number)

    def delivered_in(self, number: int) -> frozenset[str]:
        """The devices whose update of a round was accepted."""
        found = self._sql.execute("SELECT device FROM updates WHERE round = ?", (number,))
        return frozenset(row[0] for row in found)

    def told(self, read: Callable[[sqlite3.Connection], T]) -> T:
        """What a reader of rows, which changes none, finds here."""
        return read(self._sql)

    def keep(self, write: Callable[[sqlite3.Connection], None]) -> None:
        """Lets a writer of rows write, in one transaction."""
        with self._transaction() as sql:
            write(sql)

    def participations(self, version: int) -> dict[str, dict[float, int]]:
        return ledger.participations(self._sql, version)

    # -- devices

    def devices(self) -> tuple[DeviceActivity, ...]:
        found = self._sql.execute(
            "SELECT device, agent, backend, present, examples, last_seen_s, NULL, NULL, left_out, paused FROM devices "
            "ORDER BY device"
        )
        return tuple(DeviceActivity(d, a, b, bool(p), *rest) for d, a, b, p, *rest in found)

    def invitations(self) -> dict[str, int]:
        """How many rounds each device was asked to join."""
        return dict(self._sql.execute("SELECT device, count(*) FROM tasks GROUP BY device"))

    def delivered(self, device: str) -> int | None:
        """The last round of which an update of the device was accepted."""
        found = self._sql.execute("SELECT max(round) FROM updates WHERE device = ?", (device,))
        number: int | None = found.fetchone()[0]
        return number

    def paces(self) -> dict[str, Pace]:
        """Of each device's last accepted update."""
        found = self._sql.execute(
            "SELECT device, variant, steps, train_s, codec, max(round) FROM updates GROUP BY device"
        )
        return {device: Pace(variant, steps, train_s, codec) for device, variant, steps, train_s, codec, _ in found}

    def round_s(self) -> float | None:
        """How long the newest rounds took: the median of at most five, None before the first."""
        found = self._sql.execute("SELECT seconds FROM rounds WHERE state = 'committed' ORDER BY round DESC LIMIT 5")
        seconds = [row[0] for row in found]
        return median_low(seconds) if seconds else None

    def traffic(self) -> dict[Sender, Traffic]:
        """The byte counts as last noted."""
        found = self._sql.execute(
            "SELECT device, direction, boot, sent_bytes, earlier_bytes, day, before_bytes FROM traffic"
        )
        return {(device, direction): Traffic(*counts) for device, direction, *counts in found}

    def note(
        self,
        devices: Iterable[DeviceActivity],
        traffic: Mapping[Sender, Traffic],
        rejections: Mapping[tuple[str, str], tuple[int, str]],
        uptime_s: float = 0.0,
    ) -> None:
        """Writes presence, byte counts, and rejections that are of no round: (device, reason) -> count and detail."""
        with self._transaction() as sql:
            for activity in devices:
                rows.put_device(sql, activity)
            for sender, counts in traffic.items():
                rows.put_traffic(sql, sender, counts)
            for (device, reason), (count, detail) in rejections.items():
                rows.count_rejection(sql, device, 0, reason, detail, count)
            rows.set_uptime(sql, uptime_s)

    def uptime_s(self) -> float:
        """For how long coordinators have served this run, all starts together, as last noted."""
        found = self._sql.execute("SELECT value FROM meta WHERE key = 'uptime_s'").fetchone()
        return 0.0 if found is None else float(found[0])

    # -- space

    def room_for_update(self, blob: BlobRef) -> bool:
        """Whether an update fits; updates of folded rounds give way, the oldest first."""
        while not self.updates.room_for(blob):
            (oldest,) = self._sql.execute("SELECT min(fold) FROM updates WHERE kept = 1").fetchone()
            if oldest is None:
                return False
            digests = [row[0] for row in self._sql.execute("SELECT digest FROM updates WHERE fold = ?", (oldest,))]
            with self._transaction() as sql:
                sql.execute("UPDATE updates SET kept = 0 WHERE fold = ?", (oldest,))
            for digest in digests:
                if not self.uses(digest):
                    self.updates.remove(digest)
        return True

    def sweep(self, keep_versions: int, arriving: Iterable[bytes] = ()) -> None:
        """Removes every blob no row speaks of; called after a commit, when no other transfer is wanted any more.

        keep_versions: of so many the differences that lead to the current one are kept. arriving: updates on their way.
        """
        kept = {row[0] for row in self._sql.execute("SELECT digest FROM updates WHERE kept = 1")}
        self.updates.keep_only(kept | set(arriving))
        wanted = {row[0] for row in self._sql.execute("SELECT digest FROM models WHERE kept = 1")}
        # The mask of each is what makes it a model to deploy.
        beside = self._sql.execute("SELECT structure, folded FROM models WHERE kept = 1")
        wanted |= {digest for row in beside for digest in row if digest}
        wanted |= rows.late_blobs(self._sql)
        current = self.current()
        if current is not None:
            wanted |= {current.server_state, current.published.digest}
            # From each of these the next one is folded again by `replay`, as long as its updates are kept.
            wanted |= rows.server_states(self._sql, current.version - self._keep_rounds)
            wanted |= {step.blob.digest for step in self.differences(current.version, keep_versions)}
        self.models.keep_only(wanted)
        reached("coordinator.swept")

    def _drop_oldest_model(self) -> bool:
        found = self._sql.execute("SELECT version, digest FROM models WHERE kept = 1 ORDER BY version").fetchall()
        current = self.current()
        if len(found) < 2:
            return False
        with self._transaction() as sql:
            sql.execute("UPDATE models SET kept = 0 WHERE version = ?", (found[0][0],))
        beside = rows.server_states(self._sql, found[0][0], of_no_other=True)
        alone = ledger.structure_alone(self._sql, found[0][0])
        for digest in beside | alone | folded_of(self._sql, found[0][0]):
            self.models.remove(digest)
        published = None if current is None else current.published.digest
        if found[0][1] not in [published, *(digest for _, digest in found[1:])]:
            self.models.remove(found[0][1])
        return True

    def _meta(self, key: str) -> str | int:
        value: str | int = self._sql.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()[0]
        return value

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._joined:
            yield self._sql
            return
        with transaction(self._sql):
            yield self._sql
