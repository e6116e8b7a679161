"""Quasi-global momentum (QG-DSGDm): momentum of what the network did, not of one's own gradients.

Lin, Karimireddy, Stich and Jaggi 2021 (arXiv 2102.04761, algorithm 1). mh is per device and is never sent:

    m = beta * mh + g;  y = x - eta * m  (Nesterov: g + beta * m);  x' = average of y
    mh <- mu * mh + (1 - mu) * (x - x') / eta

m is not stored. After more than one local step the measured direction is their mean. The rate that measures must be
the one that the steps had.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class QuasiGlobal:
    """beta: of the momentum in a step; mu: of what is remembered of the network's moves; both from 0 to below 1."""

    beta: float = 0.9
    mu: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        for key in ("beta", "mu"):
            if not 0.0 <= getattr(self, key) < 1.0:
                raise ValueError(f"{key}: {getattr(self, key)} must be at least 0 and below 1; 0.9 is usual")


def step(rule: QuasiGlobal, momentum: Vector, x: Vector, gradient: Vector, rate: float) -> Vector:
    """y, a new vector: float32[d]. gradient: with weight decay in it. A diverging run gives infinities or NaN without a
    warning: look at the result."""
    with np.errstate(over="ignore", invalid="ignore"):
        m = rule.beta * momentum + gradient
        return (x - rate * (gradient + rule.beta * m if rule.nesterov else m)).astype(np.float32)


def refresh(rule: QuasiGlobal, momentum: Vector, before: Vector, after: Vector, rate: float, steps: int = 1) -> Vector:
    """The next mh: float32[d]. before: the model that the steps began at; after: that which the exchange gave."""
    with np.errstate(over="ignore", invalid="ignore"):
        direction = (before - after) / (rate * steps)
        return (rule.mu * momentum + (1 - rule.mu) * direction).astype(np.float32)
