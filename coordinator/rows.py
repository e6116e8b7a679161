"""The store's rows: what they say, as values, and how they are written inside somebody's transaction."""

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from coordinator import distillation_record, held_out
from coordinator.distillation_record import Distillation
from coordinator.norms import Norms
from coordinator.round import OPEN, Phase
from coordinator.schema import DATABASE, LOST
from coordinator.traffic import Sender, Traffic
from protocol.database import damaged
from protocol.envelope import Envelope, decode, encode
from protocol.messages import BlobRef, Offer, Receipt, Task
from protocol.records import read_record, write_record


@dataclass(frozen=True, slots=True)
class Trust:
    """What was done so that a version need not believe its devices.

    clipped: updates whose norm was cut; clamped: those whose weight was. noise_multiplier: of the noise in it, 0 for
    none. epsilon: what the run has given away of any device at delta; None where that has no limit, or nobody asked.
    """

    clipped: int = 0
    clamped: int = 0
    noise_multiplier: float = 0.0
    epsilon: float | None = None
    delta: float | None = None


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of the model: where it is, the server state and structure beside it, and how it did on held-out data.

    structure: the digest of what of it devices work on; None where they all work on the whole. public: the model that
    devices hold, None where it is this one. difference: what leads to that from the one they held before, if anything.
    folded: the digest of what the fold gave, None where that is this model and nothing was distilled from it.
    distilled: what came of it, None where nobody tried.
    """

    version: int
    blob: BlobRef
    server_state: bytes
    loss: float | None
    metrics: Mapping[str, float]
    structure: bytes | None = None
    public: BlobRef | None = None
    difference: BlobRef | None = None
    trust: Trust = Trust()
    folded: bytes | None = None
    distilled: Distillation | None = None

    @property
    def published(self) -> BlobRef:
        """The whole model that devices fetch."""
        return self.public or self.blob


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A device's place in a round, as of the last transaction."""

    device: str
    phase: Phase
    task: Task


@dataclass(frozen=True, slots=True)
class OpenedRound:
    """The round that was open when the store was last written. uptime_s: of the run when it was opened."""

    number: int
    extensions: int
    bytes_before: tuple[int, int]
    tasks: tuple[StoredTask, ...]
    uptime_s: float


@dataclass(frozen=True, slots=True)
class CarriedTask:
    """Who still works for which closed round. uptime_s: of the run when that was opened."""

    device: str
    number: int
    uptime_s: float


@dataclass(frozen=True, slots=True)
class AcceptedUpdate:
    """An update in a fold's set, and the task of round `number` that it is for. norms: None if it is from before any
    were kept."""

    number: int
    device: str
    digest: bytes
    weight: int
    train_s: float
    codec: str
    variant: str
    task: Task
    norms: Norms | None = None


@dataclass(frozen=True, slots=True)
class Counted:
    """What became of an accepted update of round `number`: its share of its weight in a fold."""

    number: int
    device: str
    discount: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How a device's last update was trained and packed."""

    variant: str
    steps: int
    train_s: float
    codec: str


@dataclass(frozen=True, slots=True)
class DeviceActivity:
    """What is written of a device now and then; nothing that was promised to it depends on it.

    doubled_s: when two agents were last heard under its name, None where there is one. left_out: examples and files of
    its data that it cannot use. paused: why it may not train now what it has in hand, None where it may.
    """

    device: str
    agent: str
    backend: str
    present: bool
    examples: int | None
    last_seen_s: float
    resting_day: int | None = None
    doubled_s: float | None = None
    left_out: int | None = None
    paused: str | None = None


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """What a round came to. devices: updates in its fold, `late` of them of earlier rounds. Seconds count from its
    opening, or from the last restart in it; bytes are those between its opening and its commit."""

    devices: int
    late: int
    accuracy: float | None
    seconds: float
    overhead_s: float
    evaluation_s: float
    fold_s: float
    bytes_up: int
    bytes_down: int


def insert_model(sql: sqlite3.Connection, model: ModelVersion) -> None:
    sql.execute(
        "INSERT INTO models (version, digest, size, server_state, loss, metrics, structure, public, difference, "
        "difference_size, trust, folded, distilled) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            model.version,
            model.blob.digest,
            model.blob.size,
            model.server_state,
            model.loss,
            json.dumps(dict(model.metrics)),
            model.structure,
            None if model.public is None else model.public.digest,
            None if model.difference is None else model.difference.digest,
            None if model.difference is None else model.difference.size,
            json.dumps(write_record(model.trust)),
            model.folded,
            distillation_record.pack(model.distilled),
        ),
    )


def unpack_trust(packed: str | None) -> Trust:
    """None is of a version from before anything was kept of it."""
    return Trust() if packed is None else read_record(Trust, json.loads(packed))


def model(sql: sqlite3.Connection, number: int) -> ModelVersion | None:
    row = sql.execute(
        "SELECT version, digest, size, server_state, loss, metrics, structure, public, difference, difference_size, "
        "trust, folded, distilled "
        "FROM models WHERE version = ? AND (kept = 1 OR version = (SELECT max(version) FROM models))",
        (number,),
    ).fetchone()
    if row is None:
        return None
    return ModelVersion(
        *(row[0], BlobRef(row[1], row[2]), row[3], row[4], json.loads(row[5]), row[6]),
        public=None if row[7] is None else BlobRef(row[7], row[2]),
        difference=None if row[8] is None else BlobRef(row[8], row[9]),
        trust=unpack_trust(row[10]),
        folded=row[11],
        distilled=distillation_record.unpack(row[12]),
    )


def server_states(sql: sqlite3.Connection, number: int, *, of_no_other: bool = False) -> set[bytes]:
    """The server states from which kept versions from this one on were made into the next; or that of it alone, where
    no other version has the same."""
    if of_no_other:
        found = sql.execute(
            "SELECT server_state FROM models WHERE version = ? AND server_state NOT IN "
            "(SELECT server_state FROM models WHERE version != ?)",
            (number, number),
        )
    else:
        found = sql.execute("SELECT server_state FROM models WHERE kept = 1 AND version >= ?", (number,))
    return {bytes(row[0]) for row in found}


def insert_update(sql: sqlite3.Connection, device: str, offer: Offer, weight: int, norms: Norms) -> None:
    sql.execute(
        "INSERT INTO updates (round, device, update_boot, update_sequence, digest, size, examples, weight, steps, "
        "loss, train_s, codec, variant, peak_mib, norm, buffers_norm) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            offer.round,
            device,
            offer.update_boot,
            offer.update_sequence,
            offer.blob.digest,
            offer.blob.size,
            offer.examples,
            weight,
            offer.steps,
            offer.loss,
            offer.train_s,
            offer.codec,
            offer.variant,
            offer.peak_mib,
            norms.parameters,
            norms.buffers,
        ),
    )
    held_out.insert(sql, device, offer)


def accepted(sql: sqlite3.Connection, number: int) -> tuple[AcceptedUpdate, ...]:
    found = sql.execute(
        "SELECT round, device, digest, weight, train_s, codec, variant, task, norm, buffers_norm FROM updates "
        "JOIN tasks USING (round, device) WHERE fold = ? OR (fold IS NULL AND discarded IS NULL "
        "AND ? > (SELECT max(version) FROM models)) ORDER BY round, device",
        (number, number),
    )
    return tuple(
        AcceptedUpdate(
            *(number, device, bytes(digest), weight, train_s, codec, variant, unpack_task(task)),
            norms=None if norms[0] is None else Norms(*norms),
        )
        for number, device, digest, weight, train_s, codec, variant, task, *norms in found
    )


def fate(sql: sqlite3.Connection, number: int, device: str) -> tuple[int | None, str | None] | None:
    row = sql.execute("SELECT fold, discarded FROM updates WHERE round = ? AND device = ?", (number, device)).fetchone()
    return None if row is None else (row[0], row[1])


def insert_task(sql: sqlite3.Connection, number: int, device: str, task: Task) -> None:
    sql.execute(
        "INSERT OR REPLACE INTO tasks (round, device, phase, task) VALUES (?, ?, 'invited', ?)",
        (number, device, encode(Envelope(0, 0, 0, task))),
    )


def replace_task(sql: sqlite3.Connection, number: int, device: str, task: Task) -> None:
    sql.execute(
        "UPDATE tasks SET task = ? WHERE round = ? AND device = ?", (encode(Envelope(0, 0, 0, task)), number, device)
    )


def unpack_task(data: bytes) -> Task:
    """Raises DamagedError: it was a task when it was written."""
    return unpack(Task, data)


def unpack(kind: type[T], data: bytes) -> T:
    """What a row holds as a message. Raises DamagedError where it is none of this kind any more."""
    stored = decode(data)
    if not isinstance(stored, Envelope) or not isinstance(stored.body, kind):
        raise damaged(Path(DATABASE), f"a stored {kind.__name__.lower()} cannot be read", LOST)
    return stored.body


def set_phase(
    sql: sqlite3.Connection, number: int, device: str, phase: Phase, reason: str = "", detail: str = ""
) -> None:
    sql.execute(
        "UPDATE tasks SET phase = ?, reason = ?, detail = ? WHERE round = ? AND device = ?",
        (phase, reason, detail, number, device),
    )


def commit_round(sql: sqlite3.Connection, number: int, model: ModelVersion, figures: RoundFigures) -> None:
    sql.execute(
        "UPDATE rounds SET state = 'committed', version = ?, devices = ?, accuracy = ?, loss = ?, seconds = ?, "
        "overhead_s = ?, evaluation_s = ?, fold_s = ?, bytes_up = ?, bytes_down = ? WHERE round = ?",
        (
            model.version,
            figures.devices,
            figures.accuracy,
            model.loss,
            figures.seconds,
            figures.overhead_s,
            figures.evaluation_s,
            figures.fold_s,
            figures.bytes_up,
            figures.bytes_down,
            number,
        ),
    )


def set_uptime(sql: sqlite3.Connection, uptime_s: float) -> None:
    """Never less than what is there: it only grows."""
    sql.execute(
        "INSERT INTO meta VALUES ('uptime_s', ?) ON CONFLICT (key) DO UPDATE SET value = max(value, excluded.value)",
        (uptime_s,),
    )


def late_blobs(sql: sqlite3.Connection) -> set[bytes]:
    """The blobs in which devices that still work for closed rounds have their tasks, and the structures by which their
    updates, and those that wait for a fold, are read."""
    found: set[bytes] = set()
    for (packed,) in sql.execute("SELECT task FROM tasks WHERE phase = 'carried'"):
        task = unpack_task(packed)
        found |= {task.model.digest, *(blob.digest for blob in task.beside)}
    (oldest,) = sql.execute(
        "SELECT min(round) FROM (SELECT round FROM tasks WHERE phase = 'carried' "
        "UNION ALL SELECT round FROM updates WHERE fold IS NULL AND discarded IS NULL)"
    ).fetchone()
    if oldest is not None:
        # Round n works on version n - 1.
        structures = sql.execute("SELECT structure FROM models WHERE version >= ?", (oldest - 1,))
        found |= {row[0] for row in structures if row[0] is not None}
    return found


def end_open_tasks(sql: sqlite3.Connection, number: int, *, carry: bool) -> None:
    """What becomes of the devices that are still at work when a round is committed."""
    pending = ", ".join(f"'{phase}'" for phase in sorted(OPEN))
    end = "phase = 'carried'" if carry else "phase = 'out', reason = 'withdrawn'"
    sql.execute(f"UPDATE tasks SET {end} WHERE round = ? AND phase IN ({pending})", (number,))


def set_fold(sql: sqlite3.Connection, version: int, folded: Iterable[Counted]) -> None:
    """Gives updates their one fate. Each waited for it until now."""
    for update in folded:
        sql.execute(
            "UPDATE updates SET fold = ?, discount = ? WHERE round = ? AND device = ? AND fold IS NULL "
            "AND discarded IS NULL",
            (version, update.discount, update.number, update.device),
        )
        assert sql.execute("SELECT changes()").fetchone()[0] == 1, "an update is folded once"


def insert_receipt(
    sql: sqlite3.Connection, device: str, offer: Offer, receipt: Receipt, number: int | None = None
) -> None:
    sql.execute(
        "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?)",
        (
            device,
            offer.update_boot,
            offer.update_sequence,
            offer.blob.digest,
            offer.round if number is None else number,
            encode(Envelope(0, 0, 0, receipt)),
        ),
    )


def put_device(sql: sqlite3.Connection, d: DeviceActivity) -> None:
    sql.execute(
        "INSERT INTO devices (device, agent, backend, present, examples, last_seen_s, resting_day, doubled_s, "
        "left_out, paused) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (device) DO UPDATE SET agent = excluded.agent, "
        "backend = excluded.backend, present = excluded.present, "
        "examples = coalesce(excluded.examples, examples), last_seen_s = excluded.last_seen_s, "
        "resting_day = excluded.resting_day, doubled_s = excluded.doubled_s, "
        "left_out = coalesce(excluded.left_out, left_out), paused = excluded.paused",
        (
            *(d.device, d.agent, d.backend, d.present, d.examples, d.last_seen_s, d.resting_day, d.doubled_s),
            *(d.left_out, d.paused),
        ),
    )


def put_traffic(sql: sqlite3.Connection, sender: Sender, t: Traffic) -> None:
    sql.execute(
        "INSERT OR REPLACE INTO traffic (device, direction, boot, sent_bytes, earlier_bytes, day, before_bytes) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        (*sender, t.boot, t.sent_bytes, t.earlier_bytes, t.day, t.before_bytes),
    )


def count_rejection(
    sql: sqlite3.Connection, device: str, number: int, reason: str, detail: str, count: int = 1
) -> None:
    sql.execute(
        "INSERT INTO rejections VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET count = count + excluded.count, detail = excluded.detail",
        (number, device, reason, count, detail),
    )


def receipt(sql: sqlite3.Connection, device: str, offer: Offer) -> tuple[bytes, Receipt] | None:
    """The receipt an update of this name has had, and the digest it had it for."""
    row = sql.execute(
        "SELECT digest, receipt FROM receipts WHERE device = ? AND update_boot = ? AND update_sequence = ?",
        (device, offer.update_boot, offer.update_sequence),
    ).fetchone()
    return None if row is None else (bytes(row[0]), unpack(Receipt, row[1]))


def note_training(sql: sqlite3.Connection, device: str, offer: Offer) -> None:
    """What a device's newest update says of it."""
    sql.execute(
        "UPDATE devices SET examples = ?, last_loss = ?, step_ms = ? WHERE device = ?",
        (offer.examples, offer.loss, 1000 * offer.train_s / max(1, offer.steps), device),
    )


def differences(sql: sqlite3.Connection, number: int, keep: int) -> Iterable[tuple[bytes, Any, int]]:
    """Of a version and those before, the newest first: digest of the base, of the difference to it, and its size."""
    return sql.execute(
        "SELECT coalesce(b.public, b.digest), m.difference, m.difference_size FROM models m JOIN models b "
        "ON b.version = m.version - 1 WHERE m.version <= ? AND m.version > ? ORDER BY m.version DESC",
        (number, number - keep),
    )
