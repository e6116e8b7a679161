"""The fold: the example-weighted mean of a set of deltas, the same bits in whatever order they came.

McMahan et al. 2017, algorithm 1 (FedAvg), on deltas instead of models. The sum runs in device order in float64.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Delta = npt.NDArray[np.float64]
Decoded = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True, order=True)
class Weighted:
    """One accepted update: whose, and what it counts for."""

    device: str
    weight: int

    def __post_init__(self) -> None:
        assert self.weight > 0


def fold(
    updates: Iterable[Weighted], decode: Callable[[str], Decoded], n_parameters: int, n_buffers: int
) -> tuple[Delta, Delta]:
    """The mean deltas of parameters, float64[n_parameters], and of buffers, float64[n_buffers].

    decode: the decoded payload of a device, called once for each, so that one payload is in memory at a time.
    A pure function of the set of updates, which has at least one.
    """
    parameters, buffers = np.zeros(n_parameters), np.zeros(n_buffers)
    ordered = sorted(updates)
    assert ordered, "a round closes with at least one update"
    assert len({u.device for u in ordered}) == len(ordered), "a device counts once"
    for update in ordered:
        delta, buffer_delta = decode(update.device)
        parameters += float(update.weight) * delta.astype(np.float64)
        buffers += float(update.weight) * buffer_delta.astype(np.float64)
    total = float(sum(u.weight for u in ordered))
    return parameters / total, buffers / total
