"""Local steps on one device: engine, optimiser and data put together, a few steps at a time so that nothing waits."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edge_agent.data import Dataset, batches
from edge_agent.flat_tensors import flat_tensors
from edge_agent.runtimes import optimizers
from edge_agent.runtimes.engine import Batch, Engine, StepResult, Vector
from edge_agent.runtimes.optimizers import OptimizerState
from protocol.errors import ConfigurationError, SparsefleetError
from protocol.layout import layout_of, put, take
from protocol.manifest import FULL, Manifest
from sparse import dynamic
from sparse.dynamic import SparseRule, SparseState
from sparse.masks import Mask, masked

# What a step of `decay_at` makes of the learning rate.
DECAY = 0.1
_WORD = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to train: exactly one of `steps` and `epochs` is positive; `seed` orders the examples and drops units.

    decay_at: after each of these steps the learning rate is a tenth. sparse: which parameters take part, and when.
    mean_gradient: whether the result is to tell the mean of all steps' gradients. chances: digest of those that a mask
    is learnt from, where what is trained is its scores (scores.py).
    """

    steps: int
    epochs: int
    batch_size: int
    learning_rate: float
    optimizer: optimizers.OptimizerSettings
    seed: int
    decay_at: tuple[int, ...] = ()
    sparse: SparseRule | None = None
    mean_gradient: bool = False
    chances: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step: its number from 1, the batch's loss, and how long it took."""

    number: int
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The outcome of all steps: float32[total] model, mean loss over the last epoch's steps, compute seconds.

    With a sparse rule `model` is 0 where the mask leaves out; `dense` is float32[total] behind it, and `mask`: bool[n]
    of the variant's n parameters, True where kept. gradient: float32[n], the mean over this object's steps, dense, each
    at the model of its step, if the recipe asks for it. momentum: float32[n] as the last step left it, of optimisers
    that carry one from round to round.
    """

    model: Vector
    loss: float
    steps: int
    seconds: float
    dense: Vector | None = None
    mask: Mask | None = None
    gradient: Vector | None = None
    momentum: Vector | None = None


@dataclass(frozen=True, slots=True)
class TrainingState:
    """All that a run is between two steps, for a run of the same arguments to go on from, bit for bit.

    model: float32[total], dense. anchor: float32[n], of a proximal term. losses: of the last epoch's steps. gradients:
    float64[n], their sum, or float64[0] where no mean of them is asked for. Where the data is and what is drawn follow
    from `done` and the recipe's seed.
    """

    done: int
    model: Vector
    optimizer: OptimizerState
    anchor: Vector | None
    sparse: SparseState | None
    losses: tuple[float, ...]
    seconds: float
    gradients: npt.NDArray[np.float64]


class DivergedError(SparsefleetError):
    """The loss stopped being a number."""


class LocalTraining:
    """A run of local steps over one dataset from one model. The same arguments give the same result.

    Only what the variant trains goes through the optimiser: what it freezes does not move, by weight decay and momentum
    neither, and has no moments in memory. With a sparse rule the engine sees masked parameters, and only this object
    the dense ones behind them. `advance` does steps until a time budget is used up, so that one thread can train and
    listen.

    momentum: float32[n] that rounds before left, of an optimiser that carries one; None begins at zero.
    resume: what `state` gave of a run of the same arguments, in place of the beginning. Raises ConfigurationError for
    a sparsity that the variant's tensors cannot have.
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
        mask: Mask | None = None,
        resume: TrainingState | None = None,
        momentum: Vector | None = None,
    ) -> None:
        self._engine, self._manifest, self._recipe, self._clock = engine, manifest, recipe, clock
        self._layout, self._first_buffer = layout_of(manifest, variant), manifest.parameters
        self._tensors = flat_tensors(manifest, variant)
        start = _copied(resume or self._begin(model.copy(), mask, momentum))
        self._model, self._optimizer, self._anchor = start.model, start.optimizer, start.anchor
        self._sparse, self._losses, self._seconds = start.sparse, list(start.losses), start.seconds
        self.done = start.done
        self._gradients = start.gradients
        # What the engine sees: without a rule the model itself.
        self._seen = self._model if self._sparse is None else self._model.copy()
        self._show()
        rng = np.random.default_rng(recipe.seed)
        self._batches: Iterator[Batch] = batches(dataset, recipe.batch_size, rng, self.done)
        self._per_epoch = max(1, len(dataset) // recipe.batch_size)
        self.total_steps = recipe.steps or recipe.epochs * self._per_epoch

    def _begin(self, model: Vector, mask: Mask | None, momentum: Vector | None) -> TrainingState:
        trained, settings, sparse = self._layout.parameters, self._recipe.optimizer, None
        anchor = take(model, trained).copy() if settings.proximal else None
        if self._recipe.sparse is not None:
            try:
                sparse, weights = dynamic.init(self._recipe.sparse, self._tensors, take(model, trained), mask)
            except ValueError as error:
                raise ConfigurationError(str(error)) from None
            put(model, trained, weights)
        return TrainingState(
            done=0,
            model=model,
            optimizer=optimizers.init(settings, self._layout.n_parameters, momentum),
            anchor=anchor,
            sparse=sparse,
            losses=(),
            seconds=0.0,
            gradients=np.zeros(self._layout.n_parameters if self._recipe.mean_gradient else 0),
        )

    @property
    def finished(self) -> bool:
        return self.done >= self.total_steps

    def step(self) -> Step:
        """One step. Raises DivergedError when the loss or the gradient is not finite."""
        started = self._clock()
        # Overflow is no surprise to be warned of: it is looked for right below.
        with np.errstate(over="ignore", invalid="ignore"):
            result = self._engine.step(self._seen, next(self._batches), _step_seed(self._recipe.seed, self.done))
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
        trained, rule = self._layout.parameters, self._recipe.sparse
        gradient = take(result.gradient, trained)
        if self._recipe.mean_gradient:
            self._gradients += gradient
        used = gradient if rule is None or self._sparse is None else dynamic.applied(rule, self._sparse, gradient)
        self._optimizer, updated = optimizers.step(
            self._recipe.optimizer,
            self._optimizer,
            take(self._model, trained),
            used,
            self._learning_rate(),
            self._anchor,
        )
        if rule is not None and self._sparse is not None:
            before = self._sparse.mask
            try:
                self._sparse, updated = dynamic.advance(rule, self._tensors, self._sparse, updated, gradient)
            except ValueError as error:
                raise DivergedError(f"step {self.done + 1}: {error}; lower the learning rate") from None
            # A weight that comes back moves on with the momentum it gathered outside, if it was trained there, or
            # starts with none.
            if not rule.keeps_dense and self._sparse.mask is not before:
                optimizers.forget(self._optimizer, ~(before & self._sparse.mask))
        put(self._model, trained, updated)
        first = self._first_buffer
        for part in self._layout.buffers:
            self._model[part] = result.buffers[part.start - first : part.stop - first]
        self._show()

    def _learning_rate(self) -> float:
        rate = self._recipe.learning_rate
        for step in self._recipe.decay_at:
            if self.done >= step:
                rate *= DECAY
        return rate

    def _show(self) -> None:
        """Brings what the engine sees up to the dense model and its mask: one array for good, which stays bound."""
        if self._sparse is None:
            return
        self._seen[:] = self._model
        trained = self._layout.parameters
        put(self._seen, trained, masked(take(self._model, trained), self._sparse.mask))

    def advance(self, budget_s: float, pause_at: int | None = None) -> bool:
        """Steps until all are done (True), or the budget is used up or step `pause_at` done (False); at least one."""
        until = self._clock() + budget_s
        while not self.finished:
            self.step()
            if self._clock() >= until or self.done == pause_at:
                break
        return self.finished

    def state(self) -> TrainingState:
        """What the run is now, as a copy that later steps leave alone."""
        return _copied(self.live_state())

    def live_state(self) -> TrainingState:
        """What the run is now, in arrays that the next step changes: to be written down without a copy in memory."""
        return TrainingState(
            done=self.done,
            model=self._model,
            optimizer=self._optimizer,
            anchor=self._anchor,
            sparse=self._sparse,
            losses=tuple(self._losses),
            seconds=self._seconds,
            gradients=self._gradients,
        )

    @property
    def seconds(self) -> float:
        """Of all steps so far, those before a restart included."""
        return self._seconds

    @property
    def state_bytes(self) -> int:
        """What the values of `state` take."""
        moments = self._optimizer.first_moment.nbytes + self._optimizer.second_moment.nbytes
        anchor = 0 if self._anchor is None else self._anchor.nbytes
        mask = 0 if self._sparse is None else -(-len(self._sparse.mask) // 8)
        return self._model.nbytes + moments + anchor + mask + 8 * len(self._losses) + self._gradients.nbytes

    def result(self) -> Trained:
        loss = float(np.mean(self._losses)) if self._losses else float("nan")
        mean = (self._gradients / max(1, self.done)).astype(np.float32) if self._recipe.mean_gradient else None
        momentum = self._optimizer.first_moment if self._recipe.optimizer.carries else None
        if self._sparse is None:
            return Trained(self._model, loss, self.done, self._seconds, gradient=mean, momentum=momentum)
        return Trained(self._seen, loss, self.done, self._seconds, self._model, self._sparse.mask, mean, momentum)


def _copied(state: TrainingState) -> TrainingState:
    """The state with arrays of its own where steps change them in place."""
    moments = state.optimizer
    return replace(
        state,
        model=state.model.copy(),
        optimizer=replace(
            moments, first_moment=moments.first_moment.copy(), second_moment=moments.second_moment.copy()
        ),
        gradients=state.gradients.copy(),
    )


def _step_seed(seed: int, step: int) -> int:
    """A seed of 64 bits that follows from the task's seed and the step's place, and from nothing else.

    The step-th number of SplitMix64 (Steele, Lea, Flood 2014, figure 16) begun at `seed`: NumPy's SeedSequence takes a
    tenth of the time of a small network's whole step.
    """
    z = (seed + (step + 1) * 0x9E3779B97F4A7C15) & _WORD
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _WORD
    return z ^ (z >> 31)
