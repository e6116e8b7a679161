"""Ensemble distillation: a model learns what several say together of unlabelled inputs. Pure, given the engine.

FedDF (Lin, Kong, Stich, Jaggi 2020, "Ensemble distillation for robust model fusion in federated learning", algorithm
1): the teacher is the softmax of the mean of the clients' logits, the student starts from their average and minimises
the divergence from it by Adam, its rate falling to 0 along a cosine, its gradient clipped to norm 5 as in the authors'
code; every so many steps it is tried on labelled examples, and the best is kept. Departures: the average itself is one
of those tried, so that nothing worse than it is ever kept; the teachers' logits are worked out once and not batch by
batch; and a student that says what its teachers say is left alone, for Adam makes steps of rounding errors.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.runtimes import optimizers
from edge_agent.runtimes.engine import Array, Batch, Engine, Vector
from edge_agent.runtimes.optimizers import OptimizerSettings

Logits = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_ADAM = OptimizerSettings(name="adamw")
_GRADIENT_NORM = 5.0
# Nats. Two ways to sum the same logits differ by a thousandth of this; a step of Adam moves more.
AGREED = 1e-6
# Clients that are no better than chance by so much do not teach (the authors' drop-worst), nor do those whose accuracy
# is below the others' mean by so many standard deviations.
_ABOVE_CHANCE, _BELOW_MEAN = 1.2, 1.5


@dataclass(frozen=True, slots=True)
class Rule:
    """How long and how fast a student learns. seed: of the order of inputs and of dropout."""

    steps: int
    batch_size: int
    learning_rate: float
    check_every: int
    patience: int
    seed: int


@dataclass(frozen=True, slots=True)
class Distilled:
    """The model kept, float32[total], how good the average and it are on the labelled examples, after which of how many
    steps it was there, and how far (nats, mean over the inputs) the average was from its teachers."""

    model: Vector
    before: float
    after: float
    best_step: int
    steps: int
    divergence: float


def mean_logits(of_each: Iterable[npt.NDArray[np.floating[Any]]]) -> Logits:
    """The mean of logits, float64[inputs, classes], summed in the order in which they come, one held at a time."""
    total, count = None, 0
    for logits in of_each:
        total = logits.astype(np.float64) if total is None else total + logits
        count += 1
    assert total is not None, "an ensemble has a member"
    return np.asarray(total / count, dtype=np.float64)


def softmax(logits: Logits) -> Logits:
    """Over the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True), dtype=np.float64)


def divergence(teacher: Logits, student: Logits) -> float:
    """The mean Kullback-Leibler divergence of what logits float64[inputs, classes] say, in nats."""
    theirs, ours = _log_softmax(teacher), _log_softmax(student)
    return float((np.exp(theirs) * (theirs - ours)).sum(axis=-1).mean())


def dropped(accuracies: Sequence[float], classes: int) -> tuple[bool, ...]:
    """Which of the clients do not teach; never all of them."""
    chance = [accuracy < _ABOVE_CHANCE / classes for accuracy in accuracies]
    if any(chance):
        return tuple(chance) if not all(chance) else (False,) * len(accuracies)
    rest = sorted(accuracies)[:-1]
    if not rest:
        return (False,)
    least = float(np.mean(rest)) - _BELOW_MEAN * float(np.std(rest))
    return tuple(accuracy < least for accuracy in accuracies)


def distil(
    engine: Engine,
    start: Vector,
    inputs: Sequence[Array],
    teacher: Logits,
    student_logits: Callable[[Vector], Logits],
    judge: Callable[[Vector], float],
    rule: Rule,
    trained: Mask,
    alive: Callable[[], None] = lambda: None,
) -> Distilled:
    """Learns from `start`, float32[total], which is not changed.

    engine: of the distillation graph, whose one target is what a class's probability should be. inputs: along the
    first axis, as `teacher`, float64[inputs, classes]. student_logits: of a model for those inputs. judge: accuracy on
    labelled examples. trained: bool[n_parameters], of the parameters that may move. alive: called at every step.
    """
    apart = divergence(teacher, student_logits(start))
    best = before = judge(start)
    kept, best_step, taken = start, 0, 0
    if rule.steps and apart > AGREED:
        wanted = softmax(teacher).astype(np.float32)
        n, examples = len(trained), len(teacher)
        rng, model = np.random.default_rng(rule.seed), start.copy()
        state, order = optimizers.init(_ADAM, n), np.zeros(0, dtype=np.int64)
        while taken < rule.steps and taken - best_step < rule.patience:
            if len(order) < min(rule.batch_size, examples):
                order = rng.permutation(examples)
            chosen, order = np.sort(order[: rule.batch_size]), order[rule.batch_size :]
            found = engine.step(model, Batch(tuple(a[chosen] for a in inputs), (wanted[chosen],)), rule.seed + taken)
            gradient = np.where(trained, _clipped(found.gradient), np.float32(0))
            rate = rule.learning_rate * 0.5 * (1.0 + math.cos(math.pi * taken / rule.steps))
            state, model[:n] = optimizers.step(_ADAM, state, model[:n], gradient, rate)
            model[n : n + len(found.buffers)] = found.buffers
            taken += 1
            alive()
            if taken % rule.check_every and taken < rule.steps:
                continue
            accuracy = judge(model) if np.isfinite(model).all() else -math.inf
            if accuracy > best:
                best, best_step, kept = accuracy, taken, model.copy()
    return Distilled(kept, before, best, best_step, taken, apart)


def _clipped(gradient: Vector) -> Vector:
    norm = float(np.linalg.norm(gradient.astype(np.float64)))
    return gradient * np.float32(_GRADIENT_NORM / norm) if norm > _GRADIENT_NORM else gradient


def _log_softmax(logits: Logits) -> Logits:
    moved = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(moved - np.log(np.exp(moved).sum(axis=-1, keepdims=True)), dtype=np.float64)
