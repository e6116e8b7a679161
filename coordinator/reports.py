"""What the store says of a run, read beside a running coordinator or without one."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

from coordinator import council_rows
from coordinator.budget import day_of
from coordinator.evaluate import accuracy_of
from coordinator.held_out import newest, newest_own
from coordinator.round_rows import RoundRow, round_row, round_rows
from coordinator.rows import unpack_trust
from coordinator.schema import DATABASE, LOST, locked, open_reader
from coordinator.settings import RoundSettings
from protocol.database import damaged, is_damage
from protocol.errors import NothingToDoError
from protocol.messages import TWO_AGENTS

# A line of status names so many devices; `round N` has them all.
MOST_LISTED = 8


@dataclass(frozen=True, slots=True)
class Status:
    """The run at a glance. `open_round` is None between rounds and after the last, `open_s` its age. delivered: updates
    that wait for its fold. carried: devices still at work for closed rounds. late, discarded: updates folded into later
    versions than their round's, and into none. doubled: devices under whose names two agents were heard lately.

    `waiting_for` says in words what the next step hangs on: whom the operator should look at. clipped, clamped: updates
    of the whole run whose norm or weight was cut. epsilon, delta: of central differential privacy (privacy.py); without
    it, or where something reached the model without noise, there is no epsilon. device_mean, device_worst: of version
    device_version, on what devices hold out of their own data, with the worst one's name. Without a hub, own_mean and
    own_worst: of the devices' own models on the same, as last collected; epoch, members, distance: of the council.
    """

    run: str
    fleet: str
    running: bool
    version: int
    accuracy: float | None
    loss: float | None
    rounds: int
    open_round: int | None
    open_s: float | None
    delivered: int
    waiting_for: str
    devices: int
    present: int
    bytes_up: int
    bytes_down: int
    rejected: int
    carried: int
    late: int
    discarded: int
    doubled: str
    clipped: int
    clamped: int
    epsilon: float | None
    delta: float | None
    device_version: int | None = None
    device_mean: float | None = None
    device_worst: float | None = None
    device_worst_name: str | None = None
    own_mean: float | None = None
    own_worst: float | None = None
    own_worst_name: str | None = None
    epoch: int | None = None
    members: int | None = None
    distance: float | None = None


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One device over the whole run. variant, codec: of its last update; rounds: how many it was asked to join.

    bytes_today: either way, since midnight UTC. rests: why it is not asked today, None where it may be. late,
    discarded: of its accepted updates. warning: what is wrong with it, as two agents under its name; None if nothing.
    left_out: examples and files of its data that it cannot use. paused: why it may not train now what it has in hand.
    identity: valid, expired or revoked, None where it has none; identity_ends_s: until when.
    """

    device: str
    present: bool
    examples: int | None
    backend: str
    variant: str | None
    rounds: int
    accepted: int
    rejected: int
    bytes_up: int
    bytes_down: int
    codec: str | None
    bytes_today: int
    rests: str | None
    last_loss: float | None
    step_ms: float | None
    last_seen_s: float | None
    late: int
    discarded: int
    warning: str | None
    left_out: int | None = None
    paused: str | None = None
    identity: str | None = None
    identity_ends_s: float | None = None


@dataclass(frozen=True, slots=True)
class TaskRow:
    """One device in one round; the figures are those of its update, if there is one: folded into version `fold` with
    weight times discount, or discarded for a reason, or neither yet."""

    device: str
    phase: str
    reason: str
    detail: str
    examples: int | None
    weight: int | None
    steps: int | None
    loss: float | None
    train_s: float | None
    bytes: int | None
    variant: str | None
    fold: int | None
    discount: float | None
    discarded: str | None


@dataclass(frozen=True, slots=True)
class LateRow:
    """An update of an earlier round in a fold: `behind` so many versions, it counts for weight times discount."""

    device: str
    round: int
    behind: int
    weight: int
    discount: float
    steps: int
    loss: float
    train_s: float
    bytes: int
    variant: str


@dataclass(frozen=True, slots=True)
class RejectionRow:
    """How often something was refused, and what was said last."""

    device: str
    reason: str
    count: int
    detail: str


@dataclass(frozen=True, slots=True)
class RoundDetail:
    """Everything kept of one round; `figures` is None while it is open. late: what its fold took of earlier rounds."""

    round: int
    state: str
    base_version: int
    figures: RoundRow | None
    devices: tuple[TaskRow, ...]
    late: tuple[LateRow, ...]
    rejections: tuple[RejectionRow, ...]
    decisions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Where the model of a version lies: raw little-endian float32[total], dense. structure: what devices worked on of
    it, None where that was all of it. accuracy: as it is deployed, if it was tried."""

    version: int
    path: Path
    structure: Path | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class TrainedRow:
    """What training a variant took, measured. step_ms: the median over updates; peak_mib: the most of any device's
    process; update_bytes: the median payload."""

    variant: str
    devices: int
    updates: int
    step_ms: float
    peak_mib: float | None
    update_bytes: int


# The two greet each other's absence within minutes, so that an hour of silence is the end of it.
_DOUBLED = "doubled_s > :now - 3600"
# What it said of a task that was withdrawn meanwhile says nothing of now.
_PAUSED = (
    "CASE WHEN EXISTS (SELECT 1 FROM tasks t WHERE t.device = d.device AND t.phase NOT IN ('done', 'out')) "
    "THEN paused END"
)
_WAITING = "fold IS NULL AND discarded IS NULL"


class Reports:
    """Reads one state folder; changes nothing. Raises NothingToDoError where nothing was kept yet."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._sql = open_reader(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._sql.close()
        if error is not None and is_damage(error):
            raise damaged(self._state / DATABASE, error, LOST) from None

    def status(self, wanted: RoundSettings) -> Status:
        """`wanted` are the settings of rounds, which say when the run is over or can go on."""
        meta = dict(self._sql.execute("SELECT key, value FROM meta"))
        version, loss, metrics = self._newest()
        trusts = [unpack_trust(row[0]) for row in self._sql.execute("SELECT trust FROM models ORDER BY version")]
        running = locked(self._state)
        opened = self._sql.execute("SELECT round, opened_s FROM rounds WHERE state = 'open'").fetchone()
        number, opened_s = opened or (None, None)
        accuracy = accuracy_of(json.loads(metrics))
        present = self._number("SELECT count(*) FROM devices WHERE present = 1") if running else 0
        return Status(
            run=str(meta["run"]),
            fleet=str(meta.get("fleet", "")),
            running=running,
            version=version,
            accuracy=accuracy,
            loss=loss,
            rounds=self._number("SELECT count(*) FROM rounds WHERE state = 'committed'"),
            open_round=number,
            # The wall clock may have been set meanwhile.
            open_s=None if opened_s is None else round(max(0.0, time.time() - opened_s), 1),
            waiting_for=self._waiting_for(wanted, number, version, accuracy, running, present),
            delivered=0 if number is None else self._number(f"SELECT count(*) FROM updates WHERE {_WAITING}"),
            devices=self._number("SELECT count(*) FROM devices"),
            present=present,
            bytes_up=self._bytes("up"),
            bytes_down=self._bytes("down"),
            rejected=self._number("SELECT coalesce(sum(count), 0) FROM rejections"),
            carried=self._number("SELECT count(*) FROM tasks WHERE phase = 'carried'"),
            late=self._number("SELECT count(*) FROM updates WHERE fold > round"),
            discarded=self._number("SELECT count(*) FROM updates WHERE discarded IS NOT NULL"),
            doubled=self._doubled(),
            clipped=sum(trust.clipped for trust in trusts),
            clamped=sum(trust.clamped for trust in trusts),
            epsilon=trusts[-1].epsilon,
            delta=trusts[-1].delta,
            **self._on_devices(),
            **self._without_hub(),
        )

    def _on_devices(self) -> dict[str, Any]:
        found = newest(self._sql)
        if found is None:
            return {}
        number, seen = found
        names = ("device_version", "device_mean", "device_worst", "device_worst_name")
        return dict(zip(names, (number, seen.mean, seen.worst, seen.worst_device), strict=True))

    def _without_hub(self) -> dict[str, Any]:
        own, council = newest_own(self._sql), council_rows.newest(self._sql)
        found: dict[str, Any] = {}
        if own is not None:
            found |= {"own_mean": own.mean, "own_worst": own.worst, "own_worst_name": own.worst_device}
        if council is not None:
            found |= dict(zip(("epoch", "members", "distance"), council, strict=True))
        return found

    def _waiting_for(
        self,
        wanted: RoundSettings,
        number: int | None,
        version: int,
        accuracy: float | None,
        running: bool,
        present: int,
    ) -> str:
        target = wanted.target_accuracy
        if number is None and (version >= wanted.count or (target and accuracy and accuracy >= target)):
            return "nothing, the run is over"
        if not running:
            return "the coordinator, which is not running"
        if number is None:
            resting = self._number(
                "SELECT count(*) FROM devices WHERE present = 1 AND resting_day = ?", day_of(time.time())
            )
            rest = f", {resting} of them rest until midnight UTC" if resting else ""
            able = present - resting
            return f"devices, {present} of {wanted.least} are there{rest}" if able < wanted.least else "nothing"
        tasks = self._sql.execute(
            "SELECT device, t.phase, reason, d.present, d.paused FROM tasks t LEFT JOIN devices d USING (device) "
            "WHERE (round = ? AND phase != 'done') OR (phase = 'carried' AND ?) ORDER BY device",
            (number, wanted.buffered),
        )
        said = [
            f"{device} ({reason if phase == 'out' else 'gone' if not there else 'paused' if paused else 'at work'})"
            for device, phase, reason, there, paused in tasks
        ]
        return f"updates of {_listed(said)}" if said else f"devices, {present} are there"

    def _doubled(self) -> str:
        found = self._sql.execute(
            f"SELECT device FROM devices WHERE {_DOUBLED} ORDER BY device", {"now": time.time()}
        ).fetchall()
        return _listed([device for (device,) in found]) or "none"

    def devices(self) -> tuple[DeviceRow, ...]:
        running = locked(self._state)
        rows = self._sql.execute(
            "SELECT device, present, examples, backend, "
            "(SELECT variant FROM updates u WHERE u.device = d.device ORDER BY round DESC LIMIT 1), "
            "(SELECT count(*) FROM tasks t WHERE t.device = d.device), "
            "(SELECT count(*) FROM updates u WHERE u.device = d.device), "
            "(SELECT coalesce(sum(count), 0) FROM rejections r WHERE r.device = d.device), "
            "(SELECT coalesce(sum(sent_bytes + earlier_bytes), 0) FROM traffic f "
            "WHERE f.device = d.device AND direction = 'up'), "
            "(SELECT coalesce(sum(sent_bytes + earlier_bytes), 0) FROM traffic f "
            "WHERE f.device = d.device AND direction = 'down'), "
            "(SELECT codec FROM updates u WHERE u.device = d.device ORDER BY round DESC LIMIT 1), "
            "(SELECT coalesce(sum(sent_bytes + earlier_bytes - before_bytes), 0) FROM traffic f "
            "WHERE f.device = d.device AND f.day = :day), "
            "CASE WHEN resting_day = :day THEN 'budget' END, "
            "last_loss, step_ms, last_seen_s, "
            "(SELECT count(*) FROM updates u WHERE u.device = d.device AND fold > round), "
            "(SELECT count(*) FROM updates u WHERE u.device = d.device AND discarded IS NOT NULL), "
            f"CASE WHEN {_DOUBLED} THEN '{TWO_AGENTS}' END, left_out, {_PAUSED} FROM devices d ORDER BY device",
            {"day": day_of(time.time()), "now": time.time()},
        )
        return tuple(DeviceRow(device, bool(present) and running, *rest) for device, present, *rest in rows)

    def rounds(self) -> tuple[RoundRow, ...]:
        """Every committed round, and round 0 with how the exported model did."""
        return round_rows(self._sql)

    def round(self, number: int) -> RoundDetail:
        """One round in full. Raises NothingToDoError when there was none of that number."""
        found = self._sql.execute("SELECT state, base_version FROM rounds WHERE round = ?", (number,)).fetchone()
        if found is None:
            raise NothingToDoError(f"round {number}: there is none (yet); fleet-coordinator rounds lists them")
        tasks = self._sql.execute(
            "SELECT t.device, phase, reason, detail, examples, weight, steps, loss, train_s, size, variant, fold, "
            "discount, discarded "
            "FROM tasks t LEFT JOIN updates u USING (round, device) WHERE t.round = ? ORDER BY t.device",
            (number,),
        )
        late = self._sql.execute(
            "SELECT device, round, fold - round, weight, discount, steps, loss, train_s, size, variant FROM updates "
            "WHERE fold = ? AND round < ? ORDER BY round, device",
            (number, number),
        )
        rejections = self._sql.execute(
            "SELECT device, reason, count, detail FROM rejections WHERE round = ? ORDER BY device, reason", (number,)
        )
        decisions = self._sql.execute("SELECT what FROM decisions WHERE round = ? ORDER BY at_s", (number,))
        return RoundDetail(
            round=number,
            state=found[0],
            base_version=found[1],
            figures=round_row(self._sql, number),
            devices=tuple(TaskRow(*row) for row in tasks),
            late=tuple(LateRow(*row) for row in late),
            rejections=tuple(RejectionRow(*row) for row in rejections),
            decisions=tuple(what for (what,) in decisions),
        )

    def model(self, version: int | None = None) -> ModelFile:
        """The model of a version, the newest without one. Raises NothingToDoError when it is not kept."""
        row = self._sql.execute(
            "SELECT version, digest, structure, metrics FROM models WHERE kept = 1 AND (version = ? OR ? IS NULL) "
            "ORDER BY version DESC LIMIT 1",
            (version, version),
        ).fetchone()
        if row is None:
            kept = self._sql.execute("SELECT min(version), max(version) FROM models WHERE kept = 1").fetchone()
            raise NothingToDoError(f"version {version}: not kept; there are versions {kept[0]} to {kept[1]}")
        folder = self._state / "models"
        structure = None if row[2] is None else folder / row[2].hex()
        return ModelFile(row[0], folder / row[1].hex(), structure, accuracy_of(json.loads(row[3])))

    def trained(self) -> tuple[TrainedRow, ...]:
        """What training took, by variant, over all accepted updates."""
        found: dict[str, list[tuple[str, float, float | None, int]]] = {}
        for variant, *rest in self._sql.execute(
            "SELECT variant, device, 1000.0 * train_s / steps, peak_mib, size FROM updates WHERE steps > 0 "
            "ORDER BY variant, device"
        ):
            found.setdefault(variant, []).append((rest[0], rest[1], rest[2], rest[3]))
        return tuple(
            TrainedRow(
                variant=variant,
                devices=len({device for device, *_ in updates}),
                updates=len(updates),
                step_ms=median(step_ms for _, step_ms, _, _ in updates),
                peak_mib=max((peak for _, _, peak, _ in updates if peak is not None), default=None),
                update_bytes=round(median(size for *_, size in updates)),
            )
            for variant, updates in found.items()
        )

    def traffic(self) -> tuple[int, int]:
        """Bytes up and down over the whole run."""
        return self._bytes("up"), self._bytes("down")

    def _newest(self) -> tuple[int, float | None, str]:
        row = self._sql.execute("SELECT version, loss, metrics FROM models ORDER BY version DESC LIMIT 1").fetchone()
        if row is None:
            raise NothingToDoError(f"{self._state}: the coordinator has no model yet; it is still starting")
        return row[0], row[1], row[2]

    def _bytes(self, direction: str) -> int:
        return self._number(
            "SELECT coalesce(sum(sent_bytes + earlier_bytes), 0) FROM traffic WHERE direction = ?", direction
        )

    def _number(self, query: str, *values: int | str | None) -> int:
        found: int = self._sql.execute(query, values).fetchone()[0]
        return found


def _listed(said: list[str]) -> str:
    more = f" and {len(said) - MOST_LISTED} more" if len(said) > MOST_LISTED else ""
    return ", ".join(said[:MOST_LISTED]) + more
