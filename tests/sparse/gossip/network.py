"""A network of least-squares problems in one process, for the tests of gossip."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparse.codecs import parse_codec
from sparse.gossip import choco
from sparse.gossip.weights import Weights

Vector = npt.NDArray[np.float32]
Models = npt.NDArray[np.float32]
LAYOUT = bytes(range(8))


@dataclass
class Problems:
    """Device i minimises |A_i x - b_i|^2 / 2: whose minima differ, so that gossip has something to do."""

    a: npt.NDArray[np.float32]
    b: npt.NDArray[np.float32]

    @classmethod
    def drawn(cls, n: int, d: int, seed: int = 0) -> "Problems":
        rng = np.random.default_rng(seed)
        a = rng.standard_normal((n, d, d), dtype=np.float32) / np.float32(d**0.5)
        return cls(a, rng.standard_normal((n, d), dtype=np.float32))

    def gradient(self, i: int, x: Vector) -> Vector:
        found: Vector = self.a[i].T @ (self.a[i] @ x - self.b[i])
        return found


def row(weights: Weights, i: int) -> dict[int, float]:
    """The weights of device i's neighbours."""
    return {j: float(w) for j, w in enumerate(weights[i]) if w > 0 and j != i}


def compressor(codec: str) -> choco.Compressor:
    return choco.Compressor(parse_codec(codec), LAYOUT)


def choco_round(
    states: list[choco.Choco], ys: list[Vector], weights: Weights, q: choco.Compressor, gamma: float, number: int = 0
) -> tuple[list[choco.Choco], list[Vector]]:
    """One exchange of all devices: the states and models after it. Receivers decode what senders encoded."""
    n = len(ys)
    payloads = [choco.say(states[i], ys[i], q, number * n + i)[0] for i in range(n)]
    after, models = [], []
    for i in range(n):
        near = row(weights, i)
        heard = {j: q.decode(payloads[j], len(ys[i])) for j in near}
        own = q.decode(payloads[i], len(ys[i]))
        after.append(choco.apply(states[i], own, float(weights[i, i]), heard, near))
        models.append(choco.move(after[i], ys[i], gamma))
    return after, models
