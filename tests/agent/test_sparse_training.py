"""Sparse rules around engines and optimisers: what the engine sees, what is kept behind it, and plain SGD as a case."""

from pathlib import Path

import numpy as np
import pytest

from edge_agent.data import Dataset
from edge_agent.flat_tensors import flat_tensors
from edge_agent.runtimes.engine import Batch
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.training import LocalTraining
from protocol.errors import ConfigurationError
from protocol.layout import layout_of, take
from sparse.dynamic import Method
from sparse.masks import masked, sparsity_of
from sparse.tensors import prunable_mask
from tests.agent.sparse_runs import ADAMW, METHODS, SGD, STEPS, Bench, Watched, assert_same, bench, finished, recipe_of
from tests.bundles import zoo
from tests.tiny import write_bundle

__all__ = ["bench", "zoo"]


@pytest.mark.parametrize("optimizer", [SGD, ADAMW, OptimizerSettings(momentum=0.9, proximal=0.1)])
@pytest.mark.parametrize("method", METHODS)
def test_an_all_ones_mask_is_plain_training_bit_for_bit(
    bench: Bench, method: Method, optimizer: OptimizerSettings
) -> None:
    plain = finished(bench.train(recipe_of(None, optimizer=optimizer)))
    sparse = finished(bench.train(recipe_of(method, 0.0, optimizer)))
    assert sparse.sparse is not None
    assert sparse.sparse.mask.all()
    assert sparse.model.tobytes() == plain.model.tobytes()
    assert sparse.losses == plain.losses


@pytest.mark.parametrize("optimizer", [SGD, ADAMW, OptimizerSettings(proximal=0.1)])
@pytest.mark.parametrize("method", METHODS)
def test_the_engine_sees_the_masked_model_and_the_result_is_masked_too(
    bench: Bench, method: Method, optimizer: OptimizerSettings
) -> None:
    watched, manifest = Watched(bench.engine, []), bench.bundle.manifest
    training = bench.train(recipe_of(method, 0.75, optimizer), engine=watched)
    parts = layout_of(manifest, "full").parameters
    while not training.finished:
        now = training.state()
        assert now.sparse is not None
        training.step()
        np.testing.assert_array_equal(take(watched.seen[-1], parts), masked(take(now.model, parts), now.sparse.mask))
        # Running statistics come from what the engine saw, and are one.
        np.testing.assert_array_equal(watched.seen[-1][manifest.parameters :], now.model[manifest.parameters :])
    result = training.result()
    assert result.mask is not None
    assert result.dense is not None
    np.testing.assert_array_equal(take(result.model, parts), masked(take(result.dense, parts), result.mask))
    np.testing.assert_array_equal(result.model[manifest.parameters :], result.dense[manifest.parameters :])
    assert sparsity_of(result.mask, prunable_mask(flat_tensors(manifest, "full"))) == pytest.approx(0.75, abs=0.05)
    if method == "dpf":
        assert (result.dense != result.model).any()
    elif method != "dpf-without-feedback":
        np.testing.assert_array_equal(result.dense, result.model)


def test_evaluating_and_taking_the_result_at_every_step_leaves_the_dense_weights_alone(bench: Bench) -> None:
    undisturbed = finished(bench.train(recipe_of("dpf")))
    training = bench.train(recipe_of("dpf"))
    batch = Batch(bench.dataset.inputs, bench.dataset.targets)
    while not training.finished:
        training.step()
        bench.engine.evaluate(training.result().model, batch)
        training.state()
    assert_same(training.state(), undisturbed)


@pytest.mark.parametrize("method", ["rigl", "set"])
def test_a_weight_that_is_grown_starts_without_momentum(bench: Bench, method: Method) -> None:
    training = bench.train(recipe_of(method, 0.5, ADAMW))
    before, grown = training.state(), 0
    while not training.finished:
        training.step()
        now = training.state()
        assert now.sparse is not None
        assert before.sparse is not None
        new = now.sparse.mask & ~before.sparse.mask
        grown += int(new.sum())
        for moment in (now.optimizer.first_moment, now.optimizer.second_moment):
            assert not moment[new].any()
        before = now
    assert grown


def test_dpf_keeps_momentum_for_what_is_left_out(bench: Bench) -> None:
    state = finished(bench.train(recipe_of("dpf", 0.75)))
    assert state.sparse is not None
    assert state.optimizer.first_moment[~state.sparse.mask].any()


def test_the_learning_rate_falls_to_a_tenth_after_each_decay(bench: Bench) -> None:
    recipe = recipe_of(None, optimizer=OptimizerSettings())
    training, moves = bench.train(recipe), []
    part = layout_of(bench.bundle.manifest, "full").parameters
    for _ in range(STEPS):
        before = take(training.state().model, part)
        training.step()
        moves.append(float(np.abs(take(training.state().model, part) - before).max()))
    assert max(moves[9:]) < max(moves[6:9]) / 4 < max(moves[:6]) / 16


def test_a_sparsity_that_leaves_nothing_is_refused_with_what_works(bench: Bench) -> None:
    with pytest.raises(ConfigurationError, match="the nearest that works is"):
        bench.train(recipe_of("dpf", 0.9999))


def test_a_variant_that_trains_nothing_prunable_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle")
    data = Dataset((np.zeros((4, 3), np.float32),), (np.zeros(4, np.int64),))
    with pytest.raises(ConfigurationError, match="no tensor is prunable"):
        LocalTraining(
            NumpyEngine(bundle, "bias"), bundle.manifest, data, recipe_of("dpf"), np.zeros(8, np.float32), "bias"
        )
