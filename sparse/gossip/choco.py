"""CHOCO-SGD: devices gossip about compressed differences to copies of themselves that all their neighbours know.

Koloskova, Stich and Jaggi 2019 (arXiv 1902.00340, algorithm 2), in the order of that paper: the step, the compressed
difference, the exchange, then the move towards the neighbours' copies. The deep-learning code of Koloskova, Lin, Stich
and Jaggi 2020 (arXiv 1907.09356) mixes with the copies of the round before, which is another sequence.

    y = x - eta * g;  q = Q(y - h);  h += q;  s += sum_j w_ij q_j;  x = y + gamma * (s - h)

where s = sum_j w_ij h_j, j = i included, so that two vectors are enough whatever the number of neighbours. We depart
in two things. All copies begin at the common start instead of at 0, so that the first difference is one, not a model.
And h and s are float64: they are sums of as many terms as there are rounds, which every device rounds for itself; in
float32 their rounding is a constant pull on the network's mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparse.codecs import CodecSpec, Shapes, decode, encode

Vector = npt.NDArray[np.float32]
Sums = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Compressor:
    """A codec of the project as Q: of vectors of one layout (8 bytes), made of tensors of these shapes."""

    spec: CodecSpec
    layout: bytes
    shapes: Shapes | None = None

    def encode(self, vector: Vector, seed: int) -> bytes:
        """Raises ValueError where the vector is not finite."""
        return encode(vector, self.spec, self.layout, shapes=self.shapes, seed=seed)

    def decode(self, payload: bytes | memoryview, d: int) -> Vector:
        """float32[d], the same bits on every machine. Raises PayloadError."""
        return decode(payload, d, self.layout, self.spec, shapes=self.shapes)


@dataclass(frozen=True, slots=True)
class Choco:
    """What a device keeps besides its model. h: the copy of it that the neighbours know; s: the weighted sum of their
    copies and its own, both float64[d]."""

    h: Sums
    s: Sums


def begin(start: Vector) -> Choco:
    """Where every device holds this model: the weights of a row sum to 1, so s is the model too."""
    model = start.astype(np.float64)
    return Choco(model, model.copy())


def say(state: Choco, y: Vector, compressor: Compressor, seed: int = 0) -> tuple[bytes, Vector]:
    """The payload for all neighbours, and q as they will decode it. `state` does not change: see `apply`."""
    # An overflow becomes an infinity, which encode refuses by its index.
    with np.errstate(over="ignore", invalid="ignore"):
        difference = (y - state.h).astype(np.float32)
    payload = compressor.encode(difference, seed)
    return payload, compressor.decode(payload, len(y))


def apply(
    state: Choco, own: Vector, own_weight: float, heard: Mapping[int, Vector], weights: Mapping[int, float]
) -> Choco:
    """One's own q into h and s, and the neighbours' into s, in the order of their numbers."""
    s = state.s + own_weight * own.astype(np.float64)
    for j in sorted(heard):
        s += weights[j] * heard[j].astype(np.float64)
    return Choco(state.h + own, s)


def move(state: Choco, y: Vector, gamma: float) -> Vector:
    """The model after the exchange: float32[d]."""
    return (y + gamma * (state.s - state.h)).astype(np.float32)


def rebuilt(own: Sums, own_weight: float, copies: Mapping[int, Sums], weights: Mapping[int, float]) -> Sums:
    """s from the neighbours' copies themselves: after a resync, and to see whether what was kept still is true."""
    s = own_weight * own
    for j in sorted(copies):
        s = s + weights[j] * copies[j]
    return s
