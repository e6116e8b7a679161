"""Every network of the benchmarks' zoo is exported with parity and learns its examples in every backend it is given."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.zoo import ZOO, spec_of
from edge_agent.data import Dataset
from edge_agent.runtimes.backends import choose
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model
from edge_agent.training import LocalTraining, Recipe
from export.bundle import write_bundle
from export.parity import batch_of
from protocol.bundle import Bundle, open_bundle

EXAMPLES, STEPS = 4, 8
RECIPE = Recipe(STEPS, 0, EXAMPLES, 0.02, OptimizerSettings(momentum=0.9), seed=1)


# Exporting the deepest takes half a minute, and minutes on a machine that is busy with other tests.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", params=ZOO)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Bundle]:
    name: str = request.param
    root: Path = tmp_path_factory.mktemp("networks") / name
    write_bundle(spec_of(name, EXAMPLES), root, line=name.replace("_", "-"))
    return name, open_bundle(root)


def test_it_is_exported_with_parity_and_learns_its_examples_in_every_backend(bundle: tuple[str, Bundle]) -> None:
    name, opened = bundle
    batch, model = batch_of(spec_of(name, EXAMPLES)), initial_model(opened)
    backends = opened.manifest.variants[0].backends
    assert backends
    for backend in backends:
        parity = opened.manifest.parity[backend]
        assert max(parity.loss, parity.gradient, parity.buffers, parity.three_steps) <= parity.tolerance
        engine = choose(opened, backend).engine
        training = LocalTraining(engine, opened.manifest, Dataset(batch.inputs, batch.targets), RECIPE, model)
        losses = [training.step().loss for _ in range(STEPS)]
        assert min(losses[-2:]) < 0.9 * losses[0], f"{backend}: {losses}"
        evaluated = [engine.evaluate(m, batch).loss for m in (model, training.result().model)]
        assert np.isfinite(evaluated).all()
