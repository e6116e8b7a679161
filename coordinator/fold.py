"""The fold: each tensor's mean over the devices that trained it, weighted by examples; the same bits in any order.

McMahan et al. 2017, algorithm 1 (FedAvg), on deltas instead of models, and tensor by tensor: a device that trained a
variant with frozen parts counts where it trained and nowhere else. The sum runs in device order in float64.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from protocol.layout import Layout

Delta = npt.NDArray[np.float64]
Decoded = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Weighted:
    """One accepted update: whose, what it counts for, and which parts of the model it is of."""

    device: str
    weight: int
    layout: Layout

    def __post_init__(self) -> None:
        assert self.weight > 0


@dataclass(frozen=True, slots=True)
class Folded:
    """The mean deltas: parameters float64[n_parameters], buffers float64[n_buffers]; zero where nobody trained.

    trained: the parts of the parameters that somebody trained, in order, neighbours apart.
    """

    parameters: Delta
    buffers: Delta
    trained: tuple[slice, ...]


def fold(updates: Iterable[Weighted], decode: Callable[[str], Decoded], n_parameters: int, n_buffers: int) -> Folded:
    """The mean deltas of a round.

    decode: the decoded payload of a device, in its own layout, called once for each, so that one payload is in memory
    at a time. A pure function of the set of updates, which has at least one.
    """
    ordered = sorted(updates, key=lambda update: update.device)
    assert ordered, "a round closes with at least one update"
    assert len({u.device for u in ordered}) == len(ordered), "a device counts once"
    mean = np.zeros(n_parameters + n_buffers)
    for update in ordered:
        for parts, delta in zip((update.layout.parameters, update.layout.buffers), decode(update.device), strict=True):
            _add(mean, parts, float(update.weight) * delta.astype(np.float64))
    trained = []
    for part, weight in _weights(ordered):
        mean[part] /= float(weight)
        if part.start < n_parameters:
            trained.append(part)
    return Folded(mean[:n_parameters], mean[n_parameters:], tuple(trained))


def _add(mean: Delta, parts: Sequence[slice], values: Delta) -> None:
    at = 0
    for part in parts:
        size = part.stop - part.start
        mean[part] += values[at : at + size]
        at += size
    assert at == len(values), f"{len(values)} values for parts of {at}"


def _weights(updates: Sequence[Weighted]) -> list[tuple[slice, int]]:
    """The pieces that the updates' parts cut the model into, each with what all who trained it weigh together."""
    change: Counter[int] = Counter()
    for update in updates:
        for part in (*update.layout.parameters, *update.layout.buffers):
            change[part.start] += update.weight
            change[part.stop] -= update.weight
    pieces, weight = [], 0
    for start, stop in pairwise(sorted(change)):
        weight += change[start]
        if weight:
            pieces.append((slice(start, stop), weight))
    return pieces
