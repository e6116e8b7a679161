"""Dropout on a device: masks follow from the step's seed, and the same task gives the same model."""

from collections.abc import Sequence

import numpy as np
import pytest

from edge_agent.data import Dataset
from edge_agent.runtimes.dropout import masks
from edge_agent.runtimes.engine import Batch, StepResult, Vector
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model
from edge_agent.training import LocalTraining, Recipe
from protocol.bundle import Bundle
from protocol.manifest import Dropout
from tests.bundles import Zoo
from tests.runtimes.engines import GRAPH_BACKENDS, open_engine

SHAPE = (64, 10)


def drawn(*rates: float, examples: int = 50, seed: int = 0) -> Sequence[Vector]:
    return masks([Dropout(f"mask_{rate}", SHAPE, rate) for rate in rates], examples, seed)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
def test_a_mask_drops_the_right_share_and_keeps_the_mean(rate: float) -> None:
    (mask,) = drawn(rate)
    assert mask.shape == (50, *SHAPE)
    assert mask.dtype == np.float32
    assert set(np.unique(mask)) == {np.float32(0.0), np.float32(1 / (1 - rate))}
    # Four standard deviations of the share among 32000 draws.
    assert np.mean(mask == 0) == pytest.approx(rate, abs=4 * (rate * (1 - rate) / mask.size) ** 0.5)


def test_a_rate_of_one_drops_all() -> None:
    assert not drawn(1.0)[0].any()


def test_masks_follow_from_the_seed_and_each_dropout_has_its_own() -> None:
    first, second = drawn(0.5, 0.5)
    np.testing.assert_array_equal(drawn(0.5, 0.5)[1], second)
    assert not np.array_equal(first, second)
    assert not np.array_equal(drawn(0.5, seed=1)[0], first)
    assert not np.array_equal(first[0], first[1])


@pytest.fixture(params=["cnn_with_dropout", "transformer_with_dropout"])
def bundle(request: pytest.FixtureRequest, zoo: Zoo) -> Bundle:
    return zoo(request.param)


@pytest.fixture(params=GRAPH_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def batch_of(bundle: Bundle, count: int) -> Batch:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, *bundle.manifest.inputs[0].shape)).astype(np.float32)
    return Batch((x,), (rng.integers(0, 3, count),))


def test_the_same_seed_gives_the_same_step_and_another_seed_another(backend: str, bundle: Bundle) -> None:
    engine, model, batch = open_engine(backend, bundle), initial_model(bundle), batch_of(bundle, 4)
    first = engine.step(model, batch, 7)
    loss, gradient = first.loss, first.gradient.copy()
    other = engine.step(model, batch, 8)
    assert other.loss != loss
    assert not np.allclose(other.gradient, gradient)
    again = engine.step(model, batch, 7)
    assert again.loss == loss
    np.testing.assert_array_equal(again.gradient, gradient)


def test_evaluation_has_no_dropout(backend: str, bundle: Bundle) -> None:
    engine, model, batch = open_engine(backend, bundle), initial_model(bundle), batch_of(bundle, 64)
    evaluated = engine.evaluate(model, batch).loss
    assert engine.evaluate(model, batch).loss == evaluated
    losses = [engine.step(model, batch, seed).loss for seed in range(20)]
    assert min(losses) < evaluated + 0.1
    assert evaluated not in losses


def test_an_engine_without_dropout_ignores_the_seed(backend: str, zoo: Zoo) -> None:
    bundle = zoo("mlp_classification")
    for engine in (open_engine(backend, bundle), NumpyEngine(bundle)):
        expected = engine.step(initial_model(bundle), batch_of(bundle, 4), 0).gradient.copy()
        np.testing.assert_array_equal(engine.step(initial_model(bundle), batch_of(bundle, 4), 1).gradient, expected)


def train(backend: str, bundle: Bundle, seed: int) -> Vector:
    batch = batch_of(bundle, 12)
    recipe = Recipe(5, 0, 4, 0.05, OptimizerSettings(name="sgd", momentum=0.9), seed)
    dataset = Dataset(batch.inputs, batch.targets)
    # An engine of its own each time, as after a restart.
    training = LocalTraining(open_engine(backend, bundle), bundle.manifest, dataset, recipe, initial_model(bundle))
    while not training.finished:
        training.step()
    return training.result().model


def test_a_task_done_again_gives_the_same_bytes(backend: str, bundle: Bundle) -> None:
    done = train(backend, bundle, 3)
    np.testing.assert_array_equal(train(backend, bundle, 3), done)
    assert not np.allclose(train(backend, bundle, 4), done)


def test_every_step_of_a_task_has_masks_of_its_own(zoo: Zoo) -> None:
    seeds = []

    class Listening(NumpyEngine):
        def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
            seeds.append(seed)
            return super().step(model, batch, seed)

    bundle = zoo("mlp_classification")
    batch = batch_of(bundle, 8)
    recipe = Recipe(20, 0, 4, 0.05, OptimizerSettings(name="sgd"), 2**63 - 1)
    training = LocalTraining(
        Listening(bundle), bundle.manifest, Dataset(batch.inputs, batch.targets), recipe, initial_model(bundle)
    )
    while not training.finished:
        training.step()
    assert len(set(seeds)) == 20
