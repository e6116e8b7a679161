"""RelaySum: sums that are handed on along the links of a tree, so that every model counts once in every mean.

Vogels, He, Koloskova, Lin, Karimireddy, Stich and Jaggi 2021 (arXiv 2110.04175, algorithm 1). To each neighbour j a
device sends its own y and what the others last sent it, as a sum, with how many models are in it:

    msg(i -> j) = y_i + sum_{k != j} msg(k -> i);    cnt(i -> j) = 1 + sum_{k != j} cnt(k -> i)
    x_i = (y_i + sum_k msg(k -> i) + (n - 1 - sum_k cnt(k -> i)) * fill) / n

Then x_i(t + 1) = mean_j y_j(t - tau_ij) with tau_ij = max(distance - 1, 0). fill stands for models that have not come
yet: the common start, as in the authors' code. A sum is absolute: one that is lost is made good by the next, one that
comes twice changes nothing, and one that is overtaken is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from sparse.codecs import CodecSpec
from sparse.codecs.floats import SIZES

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Relayed:
    """One message along one link: a sum of models, float32[d], of how many, and its number on that link."""

    total: Vector
    count: int
    number: int


@dataclass(frozen=True, slots=True)
class Relay:
    """What a device keeps: the newest message from each neighbour on the tree that it has one of."""

    neighbours: tuple[int, ...]
    heard: Mapping[int, Relayed]


def check_codec(spec: CodecSpec) -> None:
    """Raises ValueError for a codec that is for differences: of a sum, nothing that it leaves out comes later."""
    if spec.selection != "all" or spec.values not in SIZES:
        raise ValueError(
            f"codec: {spec} leaves out or coarsens, which differences make good later and absolute sums do not; use "
            "all/float32, all/float16 or all/bfloat16"
        )


def begin(neighbours: tuple[int, ...]) -> Relay:
    return Relay(neighbours, {})


def messages(state: Relay, y: Vector, number: int) -> dict[int, Relayed]:
    """What is due to each neighbour, in the round of this number."""
    found = {}
    for j in state.neighbours:
        others = [state.heard[k] for k in sorted(state.heard) if k != j]
        total = _sum(y, others)
        found[j] = Relayed(total.astype(np.float32), 1 + sum(other.count for other in others), number)
    return found


def receive(state: Relay, sender: int, message: Relayed) -> Relay:
    """Keeps the message unless it is from no neighbour, or not newer than the one that is held."""
    held = state.heard.get(sender)
    if sender not in state.neighbours or (held is not None and message.number <= held.number):
        return state
    return replace(state, heard={**state.heard, sender: message})


def average(state: Relay, y: Vector, n: int, fill: Vector) -> Vector:
    """The model after the exchange, of n devices in all: float32[d]. fill: float32[d]."""
    held = [state.heard[k] for k in sorted(state.heard)]
    missing = n - 1 - sum(message.count for message in held)
    return ((_sum(y, held) + missing * fill.astype(np.float64)) / n).astype(np.float32)


def _sum(y: Vector, held: list[Relayed]) -> npt.NDArray[np.float64]:
    total: npt.NDArray[np.float64] = y.astype(np.float64)
    for message in held:
        total += message.total
    return total
