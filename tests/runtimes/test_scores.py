"""Masks over frozen weights, by every engine: the weights stay, and scores have the masked model's gradient."""

import numpy as np
import pytest

from edge_agent.data import Dataset
from edge_agent.runtimes import numpy_reference
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model
from edge_agent.scores import ScoreEngine, first_scores, under_likeliest
from edge_agent.training import LocalTraining, Recipe
from protocol.layout import maskable_layout, take
from sparse.votes import chances_of, kept_of
from tests.bundles import Zoo
from tests.runtimes.engines import GRAPH_BACKENDS, open_engine
from tests.runtimes.test_contract import batch_of

ENGINES = (*GRAPH_BACKENDS, numpy_reference.NAME)


@pytest.mark.parametrize("backend", ENGINES)
def test_masking_leaves_frozen_weights_bit_identical(backend: str, zoo: Zoo) -> None:
    bundle = zoo("mlp_classification")
    manifest, weights = bundle.manifest, initial_model(bundle)
    before, parts = weights.tobytes(), maskable_layout(manifest).parameters
    chances = np.full(maskable_layout(manifest).n_parameters, 0.8, np.float32)
    batch = batch_of(20)
    engine = ScoreEngine(open_engine(backend, bundle), manifest, weights)
    recipe = Recipe(25, 0, 10, 0.3, OptimizerSettings("adamw"), 3)
    local = LocalTraining(
        engine, manifest, Dataset(batch.inputs, batch.targets), recipe, first_scores(manifest, chances)
    )
    local.advance(float("inf"))
    scores = local.result().model
    learnt = chances_of(take(scores, parts))
    assert weights.tobytes() == before
    assert not kept_of(learnt).all(), "the mask has moved"
    model = under_likeliest(manifest, weights, learnt)
    kept, masked = model == weights, model == 0
    assert (kept | masked).all()
    everything = np.ones(manifest.total, np.bool_)
    for part in parts:
        everything[part] = False
    assert not scores[everything].any(), "what may not be masked has no score"


@pytest.mark.parametrize("backend", ENGINES)
def test_the_gradient_of_scores_is_that_of_the_masked_model_times_weights_and_slope(backend: str, zoo: Zoo) -> None:
    bundle = zoo("mlp_classification")
    manifest, weights, inner = bundle.manifest, initial_model(bundle), open_engine(backend, bundle)
    layout = maskable_layout(manifest)
    chances = np.random.default_rng(1).uniform(0.1, 0.9, layout.n_parameters).astype(np.float32)
    found = ScoreEngine(inner, manifest, weights).step(first_scores(manifest, chances), batch_of(6), 0)
    gradient = found.gradient.copy()
    plain = inner.step(under_likeliest(manifest, weights, chances), batch_of(6), 0)
    expected = take(plain.gradient, layout.parameters) * take(weights, layout.parameters) * chances * (1 - chances)
    np.testing.assert_allclose(take(gradient, layout.parameters), expected, rtol=1e-4, atol=1e-7)
    assert found.loss == plain.loss
