"""Features are read off the graphs that a device has, and nothing that is no head is taken for one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtimes.engine import Batch
from edge_agent.runtimes.features import DeployedModel, GraphExtractor, NoHeadError, head_of, open_extractor
from edge_agent.runtimes.graph_writer import Node, with_output
from protocol.bundle import Bundle, deploy
from protocol.errors import BundleError, DataError
from protocol.manifest import FULL
from tests.agent.personal.headed import CLASSES, FEATURES, INPUTS, TOTAL, features_of, headed, model
from tests.bundles import Zoo
from tests.tiny import TOTAL as TINY
from tests.tiny import write_bundle

RNG = np.random.default_rng(5)
X = RNG.normal(size=(9, INPUTS)).astype(np.float32)
BATCH = Batch((X,), (np.zeros(9, np.int64),))


def test_features_are_what_goes_into_the_last_layer_and_the_deployed_graph_has_the_same(tmp_path: Path) -> None:
    bundle = headed(tmp_path / "bundle")
    extractor = open_extractor(bundle)
    assert (extractor.place.classes, extractor.place.features) == (CLASSES, FEATURES)
    np.testing.assert_array_equal(extractor.read(model(), BATCH), features_of(X))
    graph = deploy(bundle.read("inference.onnx"), bundle.manifest, model())
    np.testing.assert_array_equal(DeployedModel("it", graph, bundle.manifest).read({"x": X}), features_of(X))


def test_in_numpy_alone_the_features_of_softmax_regression_are_its_inputs(tmp_path: Path) -> None:
    x = RNG.normal(size=(4, 3)).astype(np.float32)
    extractor = open_extractor(write_bundle(tmp_path / "bundle"))
    found = extractor.read(np.ones(TINY, np.float32), Batch((x,), (np.zeros(4, np.int64),)))
    np.testing.assert_array_equal(found, x)


def test_features_that_are_the_models_input_itself_are_read_too(tmp_path: Path) -> None:
    body = (Node("Gemm", ("x", "head.weight", "head.bias"), ("scores",), {"transB": 1}),)
    x = RNG.normal(size=(6, FEATURES)).astype(np.float32)
    extractor = open_extractor(headed(tmp_path / "bundle", body, inputs=FEATURES))
    np.testing.assert_array_equal(extractor.read(model(), Batch((x,), (np.zeros(6, np.int64),))), x)


@pytest.mark.parametrize("name", ["cnn_1d", "cnn_with_batch_norm", "mlp_classification"])
def test_exported_networks_give_features_of_which_their_head_makes_their_scores(name: str, zoo: Zoo) -> None:
    from edge_agent.runtimes.evaluator import Evaluator
    from edge_agent.runtimes.parameters import initial_model

    bundle = zoo(name)
    extractor, start, manifest = open_extractor(bundle), initial_model(bundle), bundle.manifest
    x = RNG.normal(size=(5, *manifest.inputs[0].shape)).astype(np.float32)
    batch = Batch((x,), (np.zeros(5, np.int64),))
    features = extractor.read(start, batch)
    evaluator = Evaluator(bundle, manifest.variant(FULL).backends["portable"].files["eval"])
    place = extractor.place
    weight, bias = (start[t.offset : t.offset + t.size].reshape(t.shape) for t in (place.weight, place.bias))
    np.testing.assert_allclose(features @ weight.T + bias, evaluator.outputs(start, batch)[1], rtol=1e-4, atol=1e-5)
    deployed = DeployedModel("it", bundle.read(manifest.inference.path), manifest)
    np.testing.assert_allclose(deployed.read({manifest.inputs[0].name: x}), features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        (Node("Concat", ("x", "x"), ("scores",), {"axis": 1}),),
        (
            Node("Concat", ("x", "x"), ("features",), {"axis": 1}),
            Node("Gemm", ("features", "head.weight", "head.bias"), ("z",), {"transB": 1}),
            Node("Relu", ("z",), ("scores",)),
        ),
    ],
)
def test_a_model_that_does_not_end_in_a_linear_layer_has_no_head(body: tuple[Node, ...], tmp_path: Path) -> None:
    with pytest.raises(NoHeadError, match=r"torch\.nn\.Linear"):
        open_extractor(headed(tmp_path / "bundle", body))


def test_a_model_of_another_loss_has_no_head(tmp_path: Path) -> None:
    with pytest.raises(NoHeadError, match="mse"):
        open_extractor(headed(tmp_path / "bundle", loss="mse"))


def test_a_head_that_does_not_make_the_models_scores_is_not_taken_for_one(tmp_path: Path) -> None:
    bundle = headed(tmp_path / "bundle")
    extractor = open_extractor(bundle)
    assert isinstance(extractor, GraphExtractor)
    place, _ = head_of("it", bundle.read("portable/eval.onnx"), bundle.manifest)
    # What a graph that adds the bias otherwise would come to.
    extractor.place = replace(place, bias=replace(place.bias, offset=0))
    with pytest.raises(BundleError, match="does not make"):
        extractor.read(model(), BATCH)


def test_examples_that_the_model_does_not_take_are_refused(tmp_path: Path) -> None:
    extractor = open_extractor(headed(tmp_path / "bundle"))
    with pytest.raises(DataError):
        extractor.read(model(), Batch((np.zeros((2, 7), np.float32),), (np.zeros(2, np.int64),)))


def test_one_more_output_changes_nothing_else_of_a_graph(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    bundle: Bundle = headed(tmp_path / "bundle")
    before = bundle.read("inference.onnx")
    plain, more = onnx.load_from_string(before), onnx.load_from_string(with_output(before, "features"))
    assert [one.name for one in more.graph.output] == ["scores", "features"]
    del more.graph.output[1]
    assert more == plain
    assert bundle.manifest.total == TOTAL
