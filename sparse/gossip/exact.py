"""Exact gossip: the weighted mean of one's own vector and the neighbours', which is what decentralised SGD (D-SGD)
mixes with (Lian et al. 2017, algorithm 1; here the step first, then the exchange, as in Lin et al. 2021)."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]


def mix(own: Vector, own_weight: float, heard: Mapping[int, Vector], weights: Mapping[int, float]) -> Vector:
    """own_weight * own + sum_j weights[j] * heard[j]: float32[d], summed in float64 in the order of j.

    A neighbour that has weight and was not heard gives its weight to oneself, so that the row still sums to 1; the
    network's mean then moves, for the link has gone one way.
    """
    missing = sum(weight for j, weight in weights.items() if j not in heard)
    mixed: Sums = (own_weight + missing) * own.astype(np.float64)
    for j in sorted(heard):
        mixed += weights[j] * heard[j]
    return mixed.astype(np.float32)
