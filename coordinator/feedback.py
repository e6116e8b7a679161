"""Feedback to what the mask leaves out: how far the devices' reported gradients move the dense weights there.

A device tells the mean gradient of its steps, taken at the masked weights (DPF: Lin et al. 2020, algorithm 1, line 6),
for the coordinates where it is largest. Had its optimiser had those weights, so steady a gradient would have moved
them by the learning rate times the steps, and with momentum by as much more as velocity builds up over so many steps.
The mean over all updates of the fold counts a coordinate as 0 for those who did not report it: what few tell weighs
little, and nothing is made up.

A late update was trained under an older mask. Where that kept what the present one leaves out, its delta is a report
of the best kind, the coordinate was trained, so it moves the dense weights there, in the same mean. Where the present
mask keeps what the older one left out, it says nothing and does not count.

No report moves the weights further than `factor` times the median report of the fold: gradients are bounded in their
number by the codec, and in nothing else.
"""

import math
from collections.abc import Callable, Iterable
from statistics import median_low

import numpy as np

from coordinator.fold import Delta, Folded
from coordinator.norms import length
from coordinator.rows import AcceptedUpdate
from edge_agent.runtimes.engine import Vector
from protocol.messages import OptimizerSpec, Task
from sparse.masks import Mask


def with_feedback(folded: Folded, mask: Mask, motion: Delta) -> Folded:
    """The fold on the mask, and off it what late updates trained there and the motion, float64[n_parameters]. What
    stays there is trained by nobody."""
    off = folded.parameters + motion
    return Folded(
        parameters=np.where(mask, folded.parameters, off),
        buffers=folded.buffers,
        trained=np.where(mask, folded.trained, off != 0.0),
    )


def motion(
    updates: Iterable[AcceptedUpdate],
    report: Callable[[AcceptedUpdate], Vector],
    n: int,
    discounted: Callable[[AcceptedUpdate], float],
    factor: float = math.inf,
) -> Delta:
    """The mean of what the reports move, by weight: float64[n]. report: of an update that was asked for one, its
    gradient over all parameters, float32[n], 0 where it tells none. discounted: its share of its weight. factor: how
    many times the median any may move. In the order of rounds, then devices, so the same bits in any."""
    ordered = sorted(updates, key=lambda update: (update.number, update.device))
    told = [update for update in ordered if update.task.mask is not None and update.task.mask.report]
    reaches = [reach(update.task, update.weight) * length(report(update)) for update in told]
    most = factor * median_low(reaches) if reaches else math.inf
    moved = np.zeros(n)
    for update, far in zip(told, reaches, strict=True):
        clip = most / far if far > most else 1.0
        counted = update.weight * discounted(update) * clip
        moved -= counted * reach(update.task, update.weight) * report(update).astype(np.float64)
    return moved / max(1, sum(update.weight for update in ordered))


def reach(task: Task, weight: int) -> float:
    """How far a gradient of 1 at every step of the task moves a weight. weight: what the update counts for, which is
    its examples, as far as they are believed."""
    steps = task.local_steps or task.local_epochs * max(1, weight // task.batch_size)
    return task.learning_rate * _velocity(task.optimizer, steps)


def _velocity(optimizer: OptimizerSpec, steps: int) -> float:
    """The sum over the steps of what SGD makes of a gradient of 1: velocity is (1 - m^t) / (1 - m) after t steps.

    Quasi-global momentum is 0 off the mask, and builds nothing up in a round. Velocity that is kept from round to round
    is 0 there too, when a round begins.
    """
    assert optimizer.name in ("sgd", "qg"), "settings refuse reports with adamw"
    m = optimizer.momentum
    if optimizer.name == "qg":
        return steps * (1.0 + m) if optimizer.nesterov else float(steps)
    built = (steps - m * (1.0 - m**steps) / (1.0 - m)) / (1.0 - m)
    return steps + m * built if optimizer.nesterov else built
