"""The fold: each coordinate's mean over the devices that trained it, weighted by examples; the same bits in any order.

McMahan et al. 2017, algorithm 1 (FedAvg), on deltas instead of models, and coordinate by coordinate: a device that
trained a variant with frozen parts, or a slice of the model's width, counts where it trained and nowhere else, as in
HeteroFL (Diao et al. 2021, algorithm 1). The sum runs in device order in float64.

Running statistics are those of the widest models of the round alone: a channel that sees a quarter of the channels
before it has other means and variances than in the whole model, and their mixture is right for neither.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.layout import Layout
from protocol.width import Places

Delta = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Decoded = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Weighted:
    """One accepted update: whose, what it counts for, and where in the model its values belong.

    layout: of its own vector. places: where each value of that vector lies in the whole model, or None where its vector
    is the whole model.
    """

    device: str
    weight: int
    layout: Layout
    places: Places | None = None

    def __post_init__(self) -> None:
        assert self.weight > 0


@dataclass(frozen=True, slots=True)
class Folded:
    """The mean deltas: parameters float64[n_parameters], buffers float64[n_buffers]; zero where nobody trained.

    trained: bool[n_parameters], those that somebody trained.
    """

    parameters: Delta
    buffers: Delta
    trained: Mask


def fold(updates: Iterable[Weighted], decode: Callable[[str], Decoded], n_parameters: int, n_buffers: int) -> Folded:
    """The mean deltas of a round.

    decode: the decoded payload of a device, in its own layout, called once for each, so that one payload is in memory
    at a time. A pure function of the set of updates, which has at least one.
    """
    ordered = sorted(updates, key=lambda update: update.device)
    assert ordered, "a round closes with at least one update"
    assert len({u.device for u in ordered}) == len(ordered), "a device counts once"
    mean = np.zeros(n_parameters + n_buffers)
    weights = np.zeros(n_parameters + n_buffers, dtype=np.int64)
    widest = max(_width(update) for update in ordered)
    for update in ordered:
        parameters, buffers = decode(update.device)
        counted = [(update.layout.parameters, parameters)]
        if _width(update) == widest:
            counted.append((update.layout.buffers, buffers))
        for parts, delta in counted:
            at = 0
            for part in parts:
                where = part if update.places is None else update.places[part]
                mean[where] += float(update.weight) * delta[at : at + part.stop - part.start].astype(np.float64)
                weights[where] += update.weight
                at += part.stop - part.start
            assert at == len(delta), f"{len(delta)} values for parts of {at}"
    # Nobody's coordinates are zero already.
    mean /= np.maximum(weights, 1)
    return Folded(mean[:n_parameters], mean[n_parameters:], weights[:n_parameters] > 0)


def _width(update: Weighted) -> float:
    """How many values its device's model had: of a whole one more than any slice has."""
    return float("inf") if update.places is None else len(update.places)
