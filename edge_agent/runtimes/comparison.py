"""How far a runtime's step may be from torch's: the one definition, for the exporter's proof and for every device.

Differences are relative to the tensor's largest magnitude: max |a - b| / max(|b|), b being torch's. A gradient smaller
than SHARE of the model's largest counts as that much, and any other magnitude below FLOOR as FLOOR: what should cancel
to zero, as the gradient of a bias before BatchNorm, is the rounding of its much larger terms. After three steps it is
STEPPED_FLOOR: a bias that began at zero has moved by a thousandth, and a single activation of a million that rounding
puts on the other side of its kink moves that by a hundredth of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_agent.runtimes.engine import Array, Vector

# float32 has 24 bits; sums over thousands of terms in another order cost the last ten of them.
TOLERANCE = 1e-3
# The loss and running statistics are shorter sums, and a variance of the wrong kind is off by little.
STRICT = 0.1 * TOLERANCE
SHARE = 1e-2
FLOOR, STEPPED_FLOOR = 1e-3, 1e-2
TINY = 1e-12
# The optimiser steps that follow the single one.
STEPS = 3

Kind = Literal["loss", "gradient", "statistics", "three steps", "evaluation"]

_TOLERANCES: dict[Kind, float] = {
    "loss": STRICT,
    "gradient": TOLERANCE,
    "statistics": STRICT,
    "three steps": TOLERANCE,
    "evaluation": TOLERANCE,
}
_SAID: dict[Kind, str] = {
    "loss": "{}",
    "gradient": "gradient of {}",
    "statistics": "{} after a step",
    "three steps": f"{{}} after {STEPS} optimiser steps",
    "evaluation": "{} in evaluation",
}


@dataclass(frozen=True, slots=True)
class Expected:
    """What torch found for one tensor of `size` elements.

    values: float32[k], those at `places(size, k)`; all of them where k is size. magnitude: the largest of all.
    """

    tensor: str
    size: int
    values: Vector
    magnitude: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one tensor of a step was from torch's, relative to its magnitude, and how far it may be."""

    tensor: str
    kind: Kind
    difference: float
    tolerance: float

    @property
    def ok(self) -> bool:
        # Not ">": a difference that is no number agrees with nothing.
        return self.difference <= self.tolerance

    @property
    def excess(self) -> float:
        """How many times its tolerance the difference is; infinite where it is no number."""
        return self.difference / self.tolerance if self.difference >= 0 else math.inf

    @property
    def what(self) -> str:
        return _SAID[self.kind].format(self.tensor)

    def __str__(self) -> str:
        said = f"differs from torch's by {self.difference:.2e} of its magnitude, the tolerance is {self.tolerance:.0e}"
        return f"{self.what} {said}"


def whole(tensor: str, values: Array) -> Expected:
    """All of a tensor."""
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    return Expected(tensor, flat.size, flat, float(np.abs(flat).max(initial=0.0)))


def compare(kind: Kind, found: Sequence[Array], expected: Sequence[Expected]) -> tuple[Difference, ...]:
    """A row for each tensor. found: all values of each, in the order of `expected`."""
    floor = STEPPED_FLOOR if kind == "three steps" else FLOOR
    if kind == "gradient":
        floor = max(SHARE * max((e.magnitude for e in expected), default=0.0), TINY)
    rows = []
    for values, want in zip(found, expected, strict=True):
        got = values.reshape(-1)
        assert got.size == want.size, f"{got.size} values of {want.tensor}, which has {want.size}"
        if want.values.size < want.size:
            got = got[places(want.size, want.values.size)]
        rows.append(Difference(want.tensor, kind, _relative(got, want, floor), _TOLERANCES[kind]))
    return tuple(rows)


def sampled(whole: Sequence[Expected], budget: int) -> tuple[Expected, ...]:
    """The tensors with `budget` values between them, or all values where there are no more."""
    shares = counts([e.size for e in whole], budget)
    return tuple(
        Expected(e.tensor, e.size, e.values[places(e.size, share)], e.magnitude)
        for e, share in zip(whole, shares, strict=True)
    )


def counts(sizes: Sequence[int], budget: int) -> list[int]:
    """How many values of each tensor: an equal share, and what small ones leave goes to the larger; their sum is
    `budget`, or that of all sizes where it is less."""
    left, shares = min(budget, sum(sizes)), [0] * len(sizes)
    for taken, i in enumerate(sorted(range(len(sizes)), key=sizes.__getitem__)):
        shares[i] = min(sizes[i], left // (len(sizes) - taken))
        left -= shares[i]
    return shares


def places(size: int, count: int) -> npt.NDArray[np.int64]:
    """`count` different places in a tensor of `size`, spread evenly and, as rows have even lengths, not quite evenly.

    One in each of `count` equal stretches, by Knuth's multiplicative hash of the stretch's number.
    """
    numbers = np.arange(count + 1, dtype=np.int64)
    begins = numbers * size // max(1, count)
    scattered = (numbers[:-1] * 2654435761) & 0xFFFFFFFF
    return begins[:-1] + (scattered * (begins[1:] - begins[:-1]) >> 32)


def _relative(got: Array, want: Expected, floor: float) -> float:
    if not got.size:
        return 0.0
    # A diverging runtime gives infinities; the difference then is no number, and not within any tolerance.
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(got.astype(np.float64) - want.values.astype(np.float64))
    return float(distance.max() / max(floor, want.magnitude))
