"""Committed rounds as an operator reads them: what each cost, and how good what it made is."""

import json
import sqlite3
from dataclasses import dataclass
from typing import Any

from coordinator.distillation_record import Distillation, unpack
from coordinator.evaluate import accuracy_of
from coordinator.held_out import on_devices


@dataclass(frozen=True, slots=True)
class RoundRow:
    """One committed round, as its event said; round 0 is the exported model. devices: updates in its fold, `late` of
    them of earlier rounds. accuracy: of its version, the averaged model, on the coordinator's held-out data;
    device_mean, device_worst: of the same version on what devices hold out of their own, as they say with the next
    round's updates, each device counting once; personal_mean to mixed_worst: of those that tell it, with the head that
    each keeps to itself in place of the version's, and with both. distilled: what its clients taught it after the fold,
    if anything. Without a hub, own_mean, own_worst: of the devices' own models, as sent for this round, on what each
    holds out of its own data; distance: how far these were from their neighbours', the mean of
    ||sum_j w_ij x_j - x_i||."""

    round: int
    version: int
    devices: int
    accuracy: float | None
    loss: float | None
    seconds: float
    overhead_s: float
    evaluation_s: float
    fold_s: float
    extensions: int
    bytes_up: int
    bytes_down: int
    late: int
    device_mean: float | None = None
    device_worst: float | None = None
    personal_mean: float | None = None
    personal_worst: float | None = None
    mixed_mean: float | None = None
    mixed_worst: float | None = None
    distilled: Distillation | None = None
    own_mean: float | None = None
    own_worst: float | None = None
    distance: float | None = None


_ROUND = (
    "SELECT round, version, devices, accuracy, loss, seconds, overhead_s, evaluation_s, fold_s, extensions, "
    "bytes_up, bytes_down, (SELECT count(*) FROM updates u WHERE u.fold = rounds.version AND u.round < rounds.round), "
    "(SELECT avg(accuracy) FROM held_out h WHERE h.round = rounds.version + 1), "
    "(SELECT min(accuracy) FROM held_out h WHERE h.round = rounds.version + 1), "
    "(SELECT avg(personal) FROM local_heads h WHERE h.round = rounds.version + 1), "
    "(SELECT min(personal) FROM local_heads h WHERE h.round = rounds.version + 1), "
    "(SELECT avg(mixed) FROM local_heads h WHERE h.round = rounds.version + 1), "
    "(SELECT min(mixed) FROM local_heads h WHERE h.round = rounds.version + 1), "
    "(SELECT avg(accuracy) FROM own_held_out o WHERE o.round = rounds.round), "
    "(SELECT min(accuracy) FROM own_held_out o WHERE o.round = rounds.round), "
    "(SELECT distance FROM consensus c WHERE c.round = rounds.round), "
    "(SELECT distilled FROM models m WHERE m.version = rounds.version) "
    "FROM rounds WHERE state = 'committed'"
)


def round_rows(sql: sqlite3.Connection) -> tuple[RoundRow, ...]:
    """Every committed round, and round 0 with how the exported model did."""
    first = sql.execute("SELECT loss, metrics FROM models WHERE version = 0").fetchone()
    rows = [_row(row) for row in sql.execute(f"{_ROUND} ORDER BY round")]
    if first is not None:
        accuracy = accuracy_of(json.loads(first[1]))
        seen = on_devices(sql, 0)
        said = (None, None) if seen is None else (seen.mean, seen.worst)
        heads = "SELECT avg(personal), min(personal), avg(mixed), min(mixed) FROM local_heads WHERE round = 1"
        said += sql.execute(heads).fetchone()
        rows.insert(0, RoundRow(0, 0, 0, accuracy, first[0], 0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, *said))
    return tuple(rows)


def round_row(sql: sqlite3.Connection, number: int) -> RoundRow | None:
    """One round; None while it is not committed."""
    found = sql.execute(f"{_ROUND} AND round = ?", (number,)).fetchone()
    return None if found is None else _row(found)


def _row(found: tuple[Any, ...]) -> RoundRow:
    *figures, own_mean, own_worst, distance, distilled = found
    return RoundRow(*(*figures, unpack(distilled), own_mean, own_worst, distance))
