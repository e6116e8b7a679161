"""The fold: each coordinate's mean over the updates that trained it, weighted by examples; the same bits in any order.

McMahan et al. 2017, algorithm 1 (FedAvg), on deltas instead of models, and coordinate by coordinate: a device that
trained a variant with frozen parts, or a slice of the model's width, counts where it trained and nowhere else, as in
HeteroFL (Diao et al. 2021, algorithm 1). The sum runs in the order of rounds, then devices, in float64.

An update that is t versions behind counts as (1 + t)^-a of what it says (FedAsync: Xie et al. 2019, section 5.2,
polynomial; FedBuff: Nguyen et al. 2022, section 5, with a = 1/2). As there, the mean is over whole weights: a fold of
late updates alone is a smaller step, where weights that sum to one would hide that they are late.

Running statistics are those of the widest models of the round alone: a channel that sees a quarter of the channels
before it has other means and variances than in the whole model, and their mixture is right for neither. And they are
of the newest round alone: what a late update says of a variance is its difference to a base that is no more, and taken
from one that those in time have moved already it makes it negative.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from coordinator.standing import Standing
from protocol.layout import Layout
from protocol.width import Places

Delta = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Decoded = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


def discount(behind: int, exponent: float) -> float:
    """What an update counts for that is so many versions behind the one it is folded into."""
    assert behind >= 0, "nothing is folded before it was trained"
    return float((1.0 + behind) ** -exponent)


@dataclass(frozen=True, slots=True)
class Weighted:
    """One accepted update: whose, what it counts for, and where in the model its values belong.

    layout: of its own vector. places: where each value of that vector lies in the whole model, or None where its vector
    is the whole model. number: of its round. discount: of its weight, for being late. mask: bool over the layout's
    parameters, those that it trained, or None for all that anybody trains.
    clip, clip_buffers: what its values are multiplied by, to bound their norms.
    """

    device: str
    weight: int
    layout: Layout
    places: Places | None = None
    number: int = 0
    discount: float = 1.0
    mask: Mask | None = None
    clip: float = 1.0
    clip_buffers: float = 1.0

    def __post_init__(self) -> None:
        assert self.weight > 0
        assert 0.0 < self.discount <= 1.0


@dataclass(frozen=True, slots=True)
class Folded:
    """The mean deltas: parameters float64[n_parameters], buffers float64[n_buffers]; zero where nobody trained.

    trained: bool[n_parameters], those that somebody trained. standing: of devices, where the rule remembers any.
    """

    parameters: Delta
    buffers: Delta
    trained: Mask
    standing: Standing = field(default_factory=dict)


def fold(
    updates: Iterable[Weighted], decode: Callable[[Weighted], Decoded], n_parameters: int, n_buffers: int
) -> Folded:
    """The mean deltas of a round.

    decode: the decoded payload of an update, in its own layout, called once for each, so that one payload is in memory
    at a time. A pure function of the set of updates, which has at least one.
    """
    ordered = in_order(updates)
    mean = np.zeros(n_parameters + n_buffers)
    weights = np.zeros(n_parameters + n_buffers, dtype=np.int64)
    telling = tell_statistics(ordered)
    for update in ordered:
        parameters, buffers = decode(update)
        _add(mean, weights, update, update.layout.parameters, parameters, update.clip, update.mask)
        if (update.number, update.device) in telling:
            _add(mean, weights, update, update.layout.buffers, buffers, update.clip_buffers)
    # Nobody's coordinates are zero already.
    mean /= np.maximum(weights, 1)
    return Folded(mean[:n_parameters], mean[n_parameters:], weights[:n_parameters] > 0)


def tell_statistics(updates: Sequence[Weighted]) -> frozenset[tuple[int, str]]:
    """Round and device of those whose running statistics are folded: of the newest round, the widest models'."""
    newest = max(update.number for update in updates)
    fresh = [update for update in updates if update.number == newest]
    widest = max(width(update) for update in fresh)
    return frozenset((update.number, update.device) for update in fresh if width(update) == widest)


def in_order(updates: Iterable[Weighted]) -> list[Weighted]:
    """The updates in the one order in which every fold takes them."""
    ordered = sorted(updates, key=lambda update: (update.number, update.device))
    assert ordered, "a round closes with at least one update"
    assert len({(u.number, u.device) for u in ordered}) == len(ordered), "a device counts once a round"
    return ordered


def _add(
    mean: Delta,
    weights: npt.NDArray[np.int64],
    update: Weighted,
    parts: tuple[slice, ...],
    delta: npt.NDArray[np.float32],
    clip: float,
    mask: Mask | None = None,
) -> None:
    """Adds an update's values at their places, and its weight where it trained."""
    counted, at = float(update.weight) * update.discount * clip, 0
    for part in parts:
        where, end = part if update.places is None else update.places[part], at + part.stop - part.start
        mean[where] += counted * delta[at:end].astype(np.float64)
        weights[where] += update.weight if mask is None else update.weight * mask[at:end]
        at = end
    assert at == len(delta), f"{len(delta)} values for parts of {at}"


def width(update: Weighted) -> float:
    """How many values its device's model had: of a whole one more than any slice has."""
    return float("inf") if update.places is None else len(update.places)
