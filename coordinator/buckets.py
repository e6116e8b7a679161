"""Updates averaged in random buckets before a robust rule sees them, so that honest devices differ less.

Karimireddy, He, Jaggi 2022 ("Byzantine-robust learning on heterogeneous datasets via bucketing", algorithm 1). A liar
spoils the bucket that it falls into, so that the rule must bear as many buckets as there are liars. We depart from it
in the draw: buckets follow from the digest of the fold's set, so that the same set is folded to the same bits and
nobody knows them before the last update is in.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from coordinator.fold import Weighted
from coordinator.spill import Rows, rows_for


@contextmanager
def bucketed(rows: Rows, updates: Sequence[Weighted], size: int, label: bytes, folder: Path) -> Iterator[Rows]:
    """The rows' means by buckets of `size`; the rows themselves for a size of 1. updates: of the rows."""
    if size == 1:
        yield rows
        return
    members = draw(updates, size, label)
    with rows_for(len(members), rows.shape[1], folder) as means:
        for mean, places in zip(means, members, strict=True):
            mean[:] = _mean(rows, places)
        yield means


def draw(updates: Sequence[Weighted], size: int, label: bytes) -> list[list[int]]:
    """The places of each bucket's updates; the last bucket has what is left."""

    def ticket(place: int) -> bytes:
        update = updates[place]
        return hashlib.sha256(b"%b|%d|%b" % (label, update.number, update.device.encode())).digest()

    order = sorted(range(len(updates)), key=ticket)
    return [sorted(order[at : at + size]) for at in range(0, len(order), size)]


def _mean(rows: Rows, places: Sequence[int]) -> Rows:
    """Of each coordinate over those who trained it; NaN where nobody did."""
    total, count = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
    for place in places:
        there = ~np.isnan(rows[place])
        total += np.where(there, rows[place].astype(np.float64), 0.0)
        count += there
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)
