"""Folds that a minority of lying devices cannot move far, also where devices trained different parts of the model.

median, trimmed-mean: Yin et al. 2018, definitions 1 and 2. krum, multi-krum: Blanchard et al. 2017, sections 4 and 6,
with m = n - f. geometric-median: Pillutla et al. 2022 (RFA), algorithm 2, the smoothed Weiszfeld iteration.

Departures, for devices whose layouts differ: a coordinate's median or trimmed mean is of the devices that trained it,
and where there are only one or two there is nothing to be robust by; distances are over the parameters that both
sides trained, as if the others were as far apart; and what is averaged in the end is averaged at each coordinate over
those of the chosen who trained it. Every device counts once, also in RFA's mean and multi-Krum's: a weight that a
device reports of itself would hand the guarantee back. Running statistics follow the same rule, those of the widest
models, as in fold.py.

Every sum runs in device order or over sorted values, without a threaded library, so the same set gives the same bits.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator.buckets import bucketed
from coordinator.fold import Decoded, Delta, Folded, Weighted, in_order, tell_statistics
from coordinator.spill import Rows, blocks, rows_for
from coordinator.standing import NEW, Standing, remember
from coordinator.trust_settings import FoldSettings
from protocol.layout import Vector

# Of Weiszfeld's iteration: RFA takes 3 to 5 rounds of communication; ours cost none, and stop when little moves.
_ITERATIONS, _TOLERANCE = 32, 1e-6
# RFA's nu, in parts of the median distance: nearer than that all updates count alike.
_SMOOTHING = 1e-3

Counts = npt.NDArray[np.int64]


def robust_fold(
    settings: FoldSettings,
    updates: Iterable[Weighted],
    decode: Callable[[Weighted], Decoded],
    n_parameters: int,
    n_buffers: int,
    folder: Path,
    label: bytes = b"",
    standing: Standing = NEW,
) -> Folded:
    """The fold of a round under any rule but the mean. decode: as in `fold`, once for each. folder: where updates are
    spilled that are together too large for memory. label: by which buckets are drawn. standing: of devices,
    after the fold before. A pure function of these and of the set of updates, which has at least one."""
    ordered, after = in_order(updates), NEW
    n = n_parameters + n_buffers
    with rows_for(len(ordered), n, folder) as rows:
        telling = tell_statistics(ordered)
        for i, update in enumerate(ordered):
            rows[i] = _row(update, decode(update), n, with_buffers=(update.number, update.device) in telling)
        with bucketed(rows, ordered, settings.bucket, label, folder) as seen:
            if settings.rule in ("median", "trimmed-mean"):
                values, counts = _by_coordinate(seen, 0.5 if settings.rule == "median" else settings.trim)
            else:
                devices = [update.device for update in ordered]
                shares, after = _shares(settings, seen, n_parameters, devices, standing)
                values, counts = _mean(seen, shares)
    return Folded(values[:n_parameters], values[n_parameters:], counts[:n_parameters] > 0, after)


def _row(update: Weighted, decoded: Decoded, n: int, *, with_buffers: bool) -> Vector:
    """The update over the whole model, clipped: float32[n], NaN where it trained nothing."""
    row = np.full(n, np.nan, np.float32)
    parameters, buffers = decoded
    _write(row, update, update.layout.parameters, parameters, update.clip)
    if with_buffers:
        _write(row, update, update.layout.buffers, buffers, update.clip_buffers)
    return row


def _write(row: Vector, update: Weighted, parts: tuple[slice, ...], delta: Vector, clip: float) -> None:
    values = (update.discount * clip * delta.astype(np.float64)).astype(np.float32)
    if update.mask is not None and parts == update.layout.parameters:
        values[~update.mask] = np.nan
    at = 0
    for part in parts:
        end = at + part.stop - part.start
        row[part if update.places is None else update.places[part]] = values[at:end]
        at = end
    assert at == len(delta), f"{len(delta)} values for parts of {at}"


def _by_coordinate(rows: Rows, trim: float) -> tuple[Delta, Counts]:
    """The mean of each coordinate's values without the lowest and highest ceil(trim x count) of them; one or two in the
    middle always stay, which are the median."""
    devices, n = rows.shape
    values, counts = np.zeros(n), np.zeros(n, np.int64)
    place = np.arange(devices)
    for block in blocks(devices, 0, n):
        # NaN comes last.
        found = np.sort(rows[:, block].T.astype(np.float64), axis=1)
        count = devices - np.isnan(found).sum(axis=1)
        cut = np.minimum(np.ceil(trim * count - 1e-9).astype(np.int64), np.maximum(count - 1, 0) // 2)
        kept = (place >= cut[:, None]) & (place < (count - cut)[:, None])
        values[block] = np.where(kept, found, 0.0).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
        counts[block] = count
    return values, counts


def _mean(rows: Rows, shares: Sequence[float]) -> tuple[Delta, Counts]:
    """Each coordinate's mean over those who trained it, by their shares; who has none is not counted."""
    n = rows.shape[1]
    total, weight, counts = np.zeros(n), np.zeros(n), np.zeros(n, np.int64)
    for row, share in zip(rows, shares, strict=True):
        if share > 0.0:
            there = ~np.isnan(row)
            total += np.where(there, share * row.astype(np.float64), 0.0)
            weight += share * there
            counts += there
    return np.divide(total, weight, out=total, where=weight > 0.0), counts


def _shares(
    settings: FoldSettings, rows: Rows, n_parameters: int, devices: Sequence[str], standing: Standing
) -> tuple[list[float], Standing]:
    """What each row counts for in the mean that the rule comes to; and the next standing. devices: of the rows, where
    they are no buckets."""
    if settings.rule == "geometric-median":
        return _weiszfeld(rows, n_parameters), NEW
    scores, after = _krum_scores(rows, settings.byzantine, n_parameters), NEW
    if settings.memory:
        scores, after = remember(standing, settings.memory, devices, scores)
    order = np.argsort(scores, kind="stable")
    faulty = min(settings.byzantine, max(0, (len(rows) - 3) // 2))
    chosen = set(order[: 1 if settings.rule == "krum" else len(rows) - faulty].tolist())
    return [1.0 if i in chosen else 0.0 for i in range(len(rows))], after


def _krum_scores(rows: Rows, byzantine: int, n_parameters: int) -> Delta:
    """Of each update the sum of the squared distances to its n - f - 2 nearest ones."""
    devices = len(rows)
    squares = _squared_distances(rows, n_parameters)
    nearest = min(devices - 1, max(1, devices - byzantine - 2))
    np.fill_diagonal(squares, math.inf)
    scores: Delta = np.sort(squares, axis=1)[:, :nearest].sum(axis=1)
    return scores


def _squared_distances(rows: Rows, n_parameters: int) -> Delta:
    """float64[devices, devices], over the parameters both trained, times all that one could train to those; infinite
    where there are none."""
    devices = len(rows)
    sums, common = np.zeros((devices, devices)), np.zeros((devices, devices), np.int64)
    for block in blocks(devices, 0, n_parameters):
        found = rows[:, block].astype(np.float64)
        for i in range(devices - 1):
            apart = found[i + 1 :] - found[i]
            there = ~np.isnan(apart)
            apart[~there] = 0.0
            sums[i, i + 1 :] += np.einsum("jk,jk->j", apart, apart)
            common[i, i + 1 :] += there.sum(axis=1)
    far = np.full_like(sums, math.inf)
    np.divide(sums * n_parameters, common, out=far, where=common > 0)
    upper: Delta = np.triu(far, 1)
    return upper + upper.T


def _weiszfeld(rows: Rows, n_parameters: int) -> list[float]:
    """The shares whose mean is the geometric median: RFA's beta."""
    # From the median of every coordinate: from the mean, an update of 1e30 would take as many steps to forget.
    centre, before = _by_coordinate(rows, 0.5)[0], math.inf
    shares = [1.0] * len(rows)
    for _ in range(_ITERATIONS):
        distances = _distances(rows, centre, n_parameters)
        floor = _SMOOTHING * float(np.median(distances))
        if floor == 0.0:
            # More than half are one and the same update, which then is the median.
            return [1.0 if d == 0.0 else 0.0 for d in distances]
        objective = float(distances.sum())
        if before - objective <= _TOLERANCE * objective:
            break
        before = objective
        shares = [1.0 / max(floor, float(d)) for d in distances]
        centre = _mean(rows, shares)[0]
    return shares


def _distances(rows: Rows, centre: Delta, n_parameters: int) -> Delta:
    """Of each update to `centre`, over the parameters that it trained, as if the others were as far."""
    found = np.zeros(len(rows))
    for i, row in enumerate(rows):
        apart = row[:n_parameters].astype(np.float64) - centre[:n_parameters]
        there = ~np.isnan(apart)
        apart[~there] = 0.0
        found[i] = math.sqrt(float(np.square(apart).sum()) * n_parameters / max(1, int(there.sum())))
    return found
