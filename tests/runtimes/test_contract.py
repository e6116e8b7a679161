"""The contract of an engine, held by every implementation over the same exported network."""

from dataclasses import replace

import numpy as np
import pytest

from edge_agent.runtimes import numpy_reference
from edge_agent.runtimes.backends import load_evaluator
from edge_agent.runtimes.engine import Batch, Engine, Vector
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.runtimes.parameters import initial_model
from protocol.bundle import Bundle
from protocol.errors import DataError
from tests.bundles import Zoo
from tests.runtimes.engines import GRAPH_BACKENDS, open_engine

ENGINES = (*GRAPH_BACKENDS, numpy_reference.NAME)


@pytest.fixture
def bundle(zoo: Zoo) -> Bundle:
    return zoo("mlp_classification")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, bundle: Bundle) -> Engine:
    return open_engine(request.param, bundle)


@pytest.fixture(params=GRAPH_BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """One that runs exported graphs, and so any model of the zoo."""
    return str(request.param)


def batch_of(count: int, seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    return Batch((rng.normal(size=(count, 5)).astype(np.float32),), (rng.integers(0, 3, count),))


def other(model: Vector) -> Vector:
    return model + np.random.default_rng(1).normal(scale=0.1, size=model.shape).astype(np.float32)


def test_the_same_model_and_batch_give_the_same_bits_whatever_ran_between(engine: Engine, bundle: Bundle) -> None:
    model = initial_model(bundle)
    first = engine.step(model, batch_of(4), 0)
    loss, gradient = first.loss, first.gradient.copy()
    engine.step(other(model), batch_of(7, seed=1), 0)
    again = engine.step(model, batch_of(4), 0)
    assert again.loss == loss
    np.testing.assert_array_equal(again.gradient, gradient)


def test_a_step_changes_neither_model_nor_batch(engine: Engine, bundle: Bundle) -> None:
    model, batch = initial_model(bundle), batch_of(4)
    before = (model.copy(), batch.inputs[0].copy(), batch.targets[0].copy())
    engine.step(model, batch, 0)
    engine.evaluate(model, batch)
    for was, now in zip(before, (model, batch.inputs[0], batch.targets[0]), strict=True):
        np.testing.assert_array_equal(was, now)


def test_results_are_float32_of_the_manifests_sizes(engine: Engine, bundle: Bundle) -> None:
    result = engine.step(initial_model(bundle), batch_of(4), 0)
    for part, size in ((result.gradient, bundle.manifest.parameters), (result.buffers, bundle.manifest.buffers)):
        assert part.dtype == np.float32
        assert part.shape == (size,)
    assert isinstance(result.loss, float)


def test_the_gradient_is_the_slope_of_the_evaluated_loss(engine: Engine, bundle: Bundle) -> None:
    model, batch = initial_model(bundle), batch_of(8)
    gradient = engine.step(model, batch, 0).gradient.copy()
    small = 1e-2
    along = (small * gradient / np.linalg.norm(gradient)).astype(np.float32)
    up, down = engine.evaluate(model + along, batch), engine.evaluate(model - along, batch)
    assert (up.loss - down.loss) / (2 * small) == pytest.approx(np.linalg.norm(gradient), rel=1e-2)


def test_steps_against_the_gradient_lower_the_loss(engine: Engine, bundle: Bundle) -> None:
    model, batch = initial_model(bundle), batch_of(16)
    before = engine.evaluate(model, batch).loss
    for _ in range(20):
        model = model - np.float32(0.1) * engine.step(model, batch, 0).gradient
    assert engine.evaluate(model, batch).loss < before


def test_evaluation_is_a_mean_over_examples_with_the_manifests_metrics(engine: Engine, bundle: Bundle) -> None:
    model, batch = initial_model(bundle), batch_of(6)
    whole = engine.evaluate(model, batch)
    halves = [
        engine.evaluate(model, Batch((batch.inputs[0][part],), (batch.targets[0][part],)))
        for part in (slice(0, 2), slice(2, 6))
    ]
    assert whole.examples == 6
    assert list(whole.metrics) == ["accuracy"]
    assert whole.loss == pytest.approx((2 * halves[0].loss + 4 * halves[1].loss) / 6, rel=1e-5)
    accuracies = [half.metrics["accuracy"] for half in halves]
    assert whole.metrics["accuracy"] == pytest.approx((2 * accuracies[0] + 4 * accuracies[1]) / 6)


def test_engines_agree(engine: Engine, bundle: Bundle) -> None:
    model, batch = other(initial_model(bundle)), batch_of(9)
    results = [one.step(model, batch, 0) for one in (engine, NumpyEngine(bundle))]
    assert results[0].loss == pytest.approx(results[1].loss, rel=1e-6)
    np.testing.assert_allclose(results[0].gradient, results[1].gradient, rtol=1e-4, atol=1e-6)
    assert results[0].buffers.size == results[1].buffers.size == 0
    evaluations = [one.evaluate(model, batch) for one in (engine, NumpyEngine(bundle))]
    assert evaluations[0].loss == pytest.approx(evaluations[1].loss, rel=1e-6)
    assert evaluations[0].metrics == evaluations[1].metrics


def test_the_coordinators_evaluator_agrees_with_the_engine(engine: Engine, bundle: Bundle) -> None:
    model, batch = initial_model(bundle), batch_of(5)
    assert load_evaluator(bundle).evaluate(model, batch).loss == pytest.approx(
        engine.evaluate(model, batch).loss, rel=1e-6
    )


def test_two_engines_of_one_bundle_do_not_disturb_each_other(backend: str, bundle: Bundle) -> None:
    one, two = open_engine(backend, bundle), open_engine(backend, bundle, threads=2)
    model = initial_model(bundle)
    expected = one.step(model, batch_of(4), 0).gradient.copy()
    two.step(other(model), batch_of(4, seed=3), 0)
    np.testing.assert_array_equal(one.step(model, batch_of(4), 0).gradient, expected)


def test_statistics_that_overflowed_once_do_not_stay(backend: str, zoo: Zoo) -> None:
    bundle = zoo("cnn_with_batch_norm")
    engine, model = open_engine(backend, bundle), initial_model(bundle)
    rng = np.random.default_rng(0)
    image = rng.normal(size=(4, 1, 8, 8)).astype(np.float32)
    batch = Batch((image,), (rng.integers(0, 3, 4),))
    before = engine.step(model, batch, 0).buffers.copy()
    assert not np.isfinite(engine.step(model, replace(batch, inputs=(image * np.float32(1e30),)), 0).buffers).all()
    np.testing.assert_array_equal(engine.step(model, batch, 0).buffers, before)


@pytest.mark.parametrize(
    "wrong",
    [
        Batch((np.zeros((4, 6), np.float32),), (np.zeros(4, np.int64),)),
        Batch((np.zeros((4, 5), np.float32),), (np.zeros(3, np.int64),)),
        Batch((np.zeros((0, 5), np.float32),), (np.zeros(0, np.int64),)),
        Batch((np.zeros((4, 5), np.float32),), ()),
        Batch((np.zeros((4, 5), np.float32),), (np.array([0, 1, 2, 3]),)),
        Batch((np.zeros((4, 5), np.float32),), (np.array([0, 1, 2, -1]),)),
    ],
    ids=["features", "targets", "empty", "missing", "class too large", "class below zero"],
)
def test_a_batch_of_wrong_shapes_or_classes_is_a_data_error(backend: str, bundle: Bundle, wrong: Batch) -> None:
    engine, model = open_engine(backend, bundle), initial_model(bundle)
    with pytest.raises(DataError, match=r"input|target|batch"):
        engine.step(model, wrong, 0)
    with pytest.raises(DataError, match=r"input|target|batch"):
        engine.evaluate(model, wrong)


def test_an_index_outside_an_embedding_is_a_data_error_and_the_engine_goes_on(backend: str, zoo: Zoo) -> None:
    bundle = zoo("two_inputs_two_outputs")
    engine, model = open_engine(backend, bundle), initial_model(bundle)
    good = Batch((np.array([0, 9]), np.ones((2, 3), np.float32)), (np.array([0, 2]), np.zeros((2, 1), np.float32)))
    expected = engine.step(model, good, 0).gradient.copy()
    bad = replace(good, inputs=(np.array([0, 10]), good.inputs[1]))
    with pytest.raises(DataError, match="the runtime refuses it"):
        engine.step(model, bad, 0)
    with pytest.raises(DataError, match="the runtime refuses it"):
        engine.evaluate(model, bad)
    np.testing.assert_array_equal(engine.step(model, good, 0).gradient, expected)
