"""Sparse local training on the NumPy engine and on the portable one, for tests."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from edge_agent.data import Dataset
from edge_agent.runtimes.engine import Batch, Engine, Evaluation, StepResult, Vector
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model
from edge_agent.training import LocalTraining, Recipe, TrainingState
from protocol.bundle import Bundle
from sparse.dynamic import Method, SparseRule
from sparse.masks import Mask
from tests.bundles import Zoo
from tests.runtimes.engines import open_engine

STEPS = 12
SGD = OptimizerSettings(momentum=0.9, nesterov=True, weight_decay=0.01)
ADAMW = OptimizerSettings("adamw", weight_decay=0.01)
METHODS: tuple[Method, ...] = ("static", "one-shot", "gradual", "dpf", "dpf-without-feedback", "rigl", "set")


@dataclass(slots=True)
class Watched:
    """An engine that hands on to another and remembers the models it was shown."""

    inner: Engine
    seen: list[Vector]

    @property
    def name(self) -> str:
        return self.inner.name

    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        self.seen.append(model.copy())
        return self.inner.step(model, batch, seed)

    def evaluate(self, model: Vector, batch: Batch) -> Evaluation:
        return self.inner.evaluate(model, batch)


@dataclass(frozen=True, slots=True)
class Bench:
    """A bundle with an engine, data and a model to begin with."""

    bundle: Bundle
    engine: Engine
    dataset: Dataset
    model: Vector

    def train(self, recipe: Recipe, resume: TrainingState | None = None, engine: Engine | None = None) -> LocalTraining:
        manifest = self.bundle.manifest
        return LocalTraining(engine or self.engine, manifest, self.dataset, recipe, self.model, resume=resume)


def bench_of(engine: str, zoo: Zoo) -> Bench:
    """numpy: a network of one hidden layer; portable: a convolutional one with BatchNorm and running statistics."""
    bundle = zoo("mlp_classification" if engine == "numpy" else "cnn_with_batch_norm")
    rng = np.random.default_rng(0)
    inputs, targets = bundle.manifest.inputs[0], bundle.manifest.targets[0]
    x = rng.normal(size=(22, *inputs.shape)).astype(np.float32)
    if targets.dtype == "int64":
        y = rng.integers(0, targets.classes or 3, (22, *targets.shape))
    else:
        y = rng.normal(size=(22, *targets.shape)).astype(np.float32)
    opened = NumpyEngine(bundle) if engine == "numpy" else open_engine(engine, bundle)
    return Bench(bundle, opened, Dataset((x,), (y,)), initial_model(bundle))


def recipe_of(
    method: Method | None, sparsity: float = 0.5, optimizer: OptimizerSettings = SGD, steps: int = STEPS
) -> Recipe:
    rule = None
    if method is not None:
        moving = method in ("rigl", "set")
        rule = SparseRule(method, sparsity, 9, "erk" if moving else "global", refresh_every=3, seed=2)
    return Recipe(steps, 0, 4, 0.05, optimizer, 1, (6, 9), rule)


def finished(training: LocalTraining) -> TrainingState:
    training.advance(1e9)
    return training.state()


def assert_same(one: TrainingState, other: TrainingState) -> None:
    """Every bit of two states but the seconds."""
    assert (one.done, one.losses, one.optimizer.steps) == (other.done, other.losses, other.optimizer.steps)
    for a, b in (
        (one.model, other.model),
        (one.optimizer.first_moment, other.optimizer.first_moment),
        (one.optimizer.second_moment, other.optimizer.second_moment),
        (one.anchor, other.anchor),
        (_mask(one), _mask(other)),
    ):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            assert a.tobytes() == b.tobytes()


def _mask(state: TrainingState) -> Mask | None:
    return None if state.sparse is None else state.sparse.mask


def shard(folder: Path, bench: Bench) -> Path:
    """The bench's data as a file."""
    path = folder / "shard.npz"
    np.savez(path, x=bench.dataset.inputs[0], y=bench.dataset.targets[0])
    return path


@pytest.fixture(params=["numpy", "portable"])
def bench(request: pytest.FixtureRequest, zoo: Zoo) -> Bench:
    return bench_of(request.param, zoo)
