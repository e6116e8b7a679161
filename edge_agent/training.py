"""Local steps on one device: engine, optimiser and data put together, a few steps at a time so that nothing waits."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edge_agent.data import Dataset, batches
from edge_agent.runtimes import optimizers
from edge_agent.runtimes.engine import Batch, Engine, StepResult, Vector
from protocol.errors import SparsefleetError
from protocol.layout import layout_of, put, take
from protocol.manifest import FULL, Manifest


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: exactly one of `steps` and `epochs` is positive; `seed` orders the examples and drops units."""

    steps: int
    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: optimizers.OptimizerSettings
    seed: int


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step: its number from 1, the batch's loss, and how long it took."""

    number: int
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The outcome of all steps: float32[total] model, mean loss over the last epoch's steps, compute seconds."""

    model: Vector
    loss: float
    steps: int
    seconds: float


class DivergedError(SparsefleetError):
    """The loss stopped being a number."""


class LocalTraining:
    """A run of local steps over one dataset from one model. The same arguments give the same result.

    Only what the variant trains goes through the optimiser: what it freezes does not move, by weight decay and momentum
    neither, and has no moments in memory. `advance` does steps until a time budget is used up, so that one thread can
    train and listen.
    """

    def __init__(
        self,
        engine: Engine,
        manifest: Manifest,
        dataset: Dataset,
        recipe: Recipe,
        model: Vector,
        variant: str = FULL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._manifest, self._recipe, self._clock = engine, manifest, recipe, clock
        self._model = model.copy()
        self._layout = layout_of(manifest, variant)
        self._anchor = take(self._model, self._layout.parameters).copy() if recipe.optimizer.proximal else None
        self._optimizer = optimizers.init(recipe.optimizer, self._layout.n_parameters)
        rng = np.random.default_rng(recipe.seed)
        self._batches: Iterator[Batch] = batches(dataset, recipe.batch_size, rng)
        self._per_epoch = max(1, len(dataset) // recipe.batch_size)
        self.total_steps = recipe.steps or recipe.epochs * self._per_epoch
        self.done = 0
        self._seconds = 0.0
        self._losses: list[float] = []

    @property
    def finished(self) -> bool:
        return self.done >= self.total_steps

    def step(self) -> Step:
        """One step. Raises DivergedError when the loss or the gradient is not finite."""
        started = self._clock()
        # Overflow is no surprise to be warned of: it is looked for right below.
        with np.errstate(over="ignore", invalid="ignore"):
            result = self._engine.step(self._model, next(self._batches), _step_seed(self._recipe.seed, self.done))
        if not np.isfinite(result.loss) or not np.isfinite(result.gradient).all():
            raise DivergedError(
                f"step {self.done + 1}: the loss is {result.loss} and the gradient is not finite throughout; lower the "
                f"learning rate (now {self._recipe.learning_rate:g}) or check the data's scale"
            )
        self._update(result)
        self.done += 1
        self._losses.append(result.loss)
        del self._losses[: -self._per_epoch]
        seconds = self._clock() - started
        self._seconds += seconds
        return Step(self.done, result.loss, seconds)

    def _update(self, result: StepResult) -> None:
        trained = self._layout.parameters
        self._optimizer, updated = optimizers.step(
            self._recipe.optimizer,
            self._optimizer,
            take(self._model, trained),
            take(result.gradient, trained),
            self._recipe.learning_rate,
            self._anchor,
        )
        put(self._model, trained, updated)
        for part in self._layout.buffers:
            first = self._manifest.parameters
            self._model[part] = result.buffers[part.start - first : part.stop - first]

    def advance(self, budget_s: float) -> bool:
        """Steps until all are done (True) or the budget is used up (False); at least one step."""
        until = self._clock() + budget_s
        while not self.finished:
            self.step()
            if self._clock() >= until:
                break
        return self.finished

    def result(self) -> Trained:
        loss = float(np.mean(self._losses)) if self._losses else float("nan")
        return Trained(self._model, loss, self.done, self._seconds)


def _step_seed(seed: int, step: int) -> int:
    """A seed of 64 bits that follows from the task's seed and the step's place, and from nothing else."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0])
