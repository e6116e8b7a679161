"""A deployed model file is measured as its users will run it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edge_agent.runtimes.engine import Batch
from edge_agent.runtimes.inference import evaluate_inference
from protocol.errors import BundleError
from tests.tiny import FEATURES, write_bundle


def write_graph(path: Path, name: str = "x") -> Path:
    """scores = (-x0, x0): class 1 where the first number is positive."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [FEATURES, 2], [-1, 1, 0, 0, 0, 0])
    graph = helper.make_graph(
        [helper.make_node("MatMul", [name, "w"], ["scores"])],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 2])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, path)
    return path


def test_the_metrics_are_means_over_all_examples(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "bundle").manifest
    x = np.random.default_rng(0).normal(size=(50, FEATURES)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    y[:10] = 1 - y[:10]
    path = write_graph(tmp_path / "model.onnx")
    for size in (1, 7, 50, 100):
        found = evaluate_inference(path, manifest, Batch((x,), (y,)), size)
        assert found == {"accuracy": pytest.approx(0.8)}


def test_a_file_that_is_missing_no_graph_or_of_another_model_is_refused(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "bundle").manifest
    data = Batch((np.zeros((1, FEATURES), np.float32),), (np.zeros(1, np.int64),))
    with pytest.raises(BundleError, match="cannot be read"):
        evaluate_inference(tmp_path / "missing.onnx", manifest, data)
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(BundleError, match=r"text.onnx: no graph that is run here"):
        evaluate_inference(tmp_path / "text.onnx", manifest, data)
    other = write_graph(tmp_path / "other.onnx", name="image")
    with pytest.raises(BundleError, match="takes image where the bundle's inputs are x"):
        evaluate_inference(other, manifest, data)
