"""How large updates are: the norms that bound what one device can do, at intake and in the fold.

A norm is the root of the mean square over the values that the update holds, so that updates of narrower tiers and of
partly frozen variants compare with whole ones. Running statistics have one of their own. The median of what was
accepted before is the measure: fewer than half cannot move it far (Sun et al. 2019 bound norms by a fixed number, which
is right for one model and one phase of its training).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

import numpy as np

from coordinator.fold import Decoded
from coordinator.trust_settings import FoldSettings
from edge_agent.runtimes.engine import Vector
from protocol.errors import Rejection

# A fold with fewer updates looks back at earlier ones, so that two devices are not each other's measure.
ENOUGH = 16
# Of so many of the newest the median is taken at intake.
RECENT = 64
# Before so many were accepted there is nothing to call an update too large by.
LEAST = 5
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class Norms:
    """Root mean squares of an update: of its parameters and of its running statistics; or bounds on those."""

    parameters: float
    buffers: float


UNBOUNDED = Norms(math.inf, math.inf)


def norms_of(decoded: Decoded) -> Norms:
    parameters, buffers = decoded
    return Norms(root_mean_square(parameters), root_mean_square(buffers))


def root_mean_square(values: Vector) -> float:
    """In float64, block by block, so that it takes no memory to speak of."""
    return length(values) / math.sqrt(max(1, len(values)))


def length(values: Vector) -> float:
    """The Euclidean norm."""
    total = 0.0
    for at in range(0, len(values), _BLOCK):
        total += float(np.square(values[at : at + _BLOCK], dtype=np.float64).sum())
    return math.sqrt(total)


def hard_bounds(factor: float, recent: Sequence[Norms]) -> Norms:
    """Beyond these an update is refused: `factor` times the median of recent ones; 0 is for no bounds."""
    if not factor or len(recent) < LEAST:
        return UNBOUNDED
    return _times_median(factor, recent)


def check_norms(found: Norms, most: Norms) -> Rejection | None:
    for what, value, limit in (
        ("parameters", found.parameters, most.parameters),
        ("running statistics", found.buffers, most.buffers),
    ):
        if value > limit:
            return Rejection(
                "norm", f"{what} of root mean square {value:.3g} are over the limit of {limit:.3g} (limits.norm)"
            )
    return None


def fold_bounds(settings: FoldSettings, n_parameters: int, found: Sequence[Norms], recent: Sequence[Norms]) -> Norms:
    """To these the fold clips. found: of its own updates; recent: of earlier ones, the newest first, of which as many
    count as are missing to `ENOUGH`. A number in the settings is the Euclidean norm of a whole model's parameters."""
    if settings.clip == "none":
        return UNBOUNDED
    by_median = _times_median(settings.clip_factor, [*found, *recent[: max(0, ENOUGH - len(found))]])
    if isinstance(settings.clip, str):
        return by_median
    return Norms(settings.clip / math.sqrt(max(1, n_parameters)), by_median.buffers)


def clip_factors(found: Norms, most: Norms) -> Norms:
    """What values of these norms are multiplied by, so that they come to no more than `most`."""
    return Norms(_factor(found.parameters, most.parameters), _factor(found.buffers, most.buffers))


def most_weight(weights: Sequence[int], factor: float) -> int:
    """No update counts for more: `factor` times the median, as nobody can verify on how many examples a device trained;
    0 is for no limit beside that of one device."""
    return max(1, int(factor * median_low(weights))) if factor else max(weights)


def _times_median(factor: float, norms: Sequence[Norms]) -> Norms:
    return Norms(
        factor * _median([n.parameters for n in norms if n.parameters > 0.0]),
        factor * _median([n.buffers for n in norms if n.buffers > 0.0]),
    )


def _median(values: Sequence[float]) -> float:
    """Of two in the middle the lower one. Who moved nothing, or has nothing to move, is no measure for the others."""
    return median_low(values) if values else math.inf


def _factor(found: float, most: float) -> float:
    return 1.0 if found <= most else most / found
