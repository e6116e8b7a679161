"""How far apart devices are, as each can tell for itself, and what brings them closer: more gossip or fewer steps.

Kong, Lin, Koloskova, Jaggi and Stich 2021, Consensus Control for Decentralized Deep Learning (arXiv 2102.04828): below
a critical distance decentralised training is as fast as centralised, and it is the first phase that must be kept
below it. Their target is a share of the largest distance; ours too, of the largest that this fleet has reported, for
a fleet cannot be run twice to know it beforehand. CHOCO must not be asked whether all is well by this alone: after
lost differences devices agree with each other on what is wrong.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def local_estimate(own: Floats, heard: Mapping[int, Floats], weights: Mapping[int, float]) -> float:
    """||sum_j w_ij x_j - x_i||: 0 at every device of a connected graph if and only if all hold the same model.

    weights: of the neighbours, those of a row with one's own sum to 1. With CHOCO it is ||s - h||.
    """
    pull = np.zeros(len(own))
    for j in sorted(heard):
        pull += weights[j] * (heard[j].astype(np.float64) - own)
    return float(np.linalg.norm(pull))


def distance(models: Sequence[Floats]) -> float:
    """sqrt(1/n sum_i ||x_i - mean||^2), which only who holds all models can tell."""
    together = np.stack([np.asarray(model, dtype=np.float64) for model in models])
    return float(np.sqrt(np.square(together - together.mean(axis=0)).sum(axis=1).mean()))


@dataclass(frozen=True, slots=True)
class Control:
    """Keeps the mean estimate under `target` times the largest, in rounds before `until`.

    gossip_rounds, local_steps: of a round where nothing has to be done. most_gossip_rounds: that it may come to.
    """

    target: float
    until: int
    gossip_rounds: int = 1
    local_steps: int = 1
    most_gossip_rounds: int = 8

    def __post_init__(self) -> None:
        if not 0.0 < self.target <= 1.0:
            raise ValueError(f"target: {self.target} must be above 0 and at most 1, a share of the largest distance")
        if not 1 <= self.gossip_rounds <= self.most_gossip_rounds or self.local_steps < 1:
            raise ValueError("gossip_rounds and local_steps must be at least 1, and gossip_rounds at most the most")


@dataclass(frozen=True, slots=True)
class Effort:
    """What devices are asked for in a round, and the largest mean estimate so far."""

    gossip_rounds: int
    local_steps: int
    largest: float = 0.0


def begin(control: Control) -> Effort:
    return Effort(control.gossip_rounds, control.local_steps)


def adjust(control: Control, effort: Effort, number: int, estimates: Sequence[float]) -> Effort:
    """The effort of the round after `number`, whose devices reported these estimates; without any, as it was. What is
    no finite number is none: an infinite largest would end the control for good.

    Above the target gossip rounds are doubled, and once they are at their most, local steps are halved; below half of
    it one step back, steps first, so that it does not swing. After the first phase, as if there were no control.
    """
    if number >= control.until:
        return Effort(control.gossip_rounds, control.local_steps, effort.largest)
    finite = [estimate for estimate in estimates if math.isfinite(estimate)]
    if not finite:
        return effort
    mean = float(np.mean(finite))
    largest = max(effort.largest, mean)
    rounds, steps = effort.gossip_rounds, effort.local_steps
    if mean > control.target * largest:
        if rounds < control.most_gossip_rounds:
            rounds = min(control.most_gossip_rounds, 2 * rounds)
        else:
            steps = max(1, steps // 2)
    elif mean < control.target * largest / 2:
        if steps < control.local_steps:
            steps = min(control.local_steps, 2 * steps)
        else:
            rounds = max(control.gossip_rounds, rounds // 2)
    return Effort(rounds, steps, largest)
