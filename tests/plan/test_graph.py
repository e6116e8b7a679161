"""What a plan reads out of a graph: shapes at a batch size, what the runtime takes away, how often bodies run."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from export.plan.graph import read_graph
from protocol.errors import BundleError
from tests.plan.graphs import write

node = helper.make_node


def test_the_batch_goes_through_shapes_that_are_computed(tmp_path: Path) -> None:
    nodes = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Unsqueeze", ["n", "zero_axis"], ["n1"]),
        node("Concat", ["n1", "six"], ["to"], axis=0),
        node("Reshape", ["x", "to"], ["flat"]),
        node("MatMul", ["flat", "w"], ["y"]),
    ]
    w = np.zeros((6, 4), np.float32)
    constants = {"zero": np.int64(0), "zero_axis": np.array([0]), "six": np.array([6]), "w": w}
    graph = read_graph(write(tmp_path / "g.onnx", nodes, {"x": ["batch", 2, 3]}, ["y"], **constants), 5)
    assert graph.unknown == 0
    last = graph.steps[-1].operation
    assert last is not None
    assert (last.inputs, last.outputs) == (((5, 6), (6, 4)), ((5, 4),))
    assert graph.sizes["flat"] == 5 * 6 * 4


def test_what_depends_on_constants_alone_does_not_run(tmp_path: Path) -> None:
    nodes = [node("Exp", ["w"], ["e"]), node("Add", ["x", "e"], ["y"])]
    graph = read_graph(write(tmp_path / "g.onnx", nodes, {"x": ["n", 3]}, ["y"], w=np.zeros(3, np.float32)), 2)
    assert [step.kind for step in graph.steps] == ["Add"]
    assert graph.nodes == 2


def test_a_transposition_that_only_products_read_is_part_of_them(tmp_path: Path) -> None:
    nodes = [node("Transpose", ["b"], ["t"], perm=[0, 2, 1]), node("MatMul", ["a", "t"], ["y"])]
    graph = read_graph(write(tmp_path / "g.onnx", nodes, {"a": ["n", 3, 4], "b": ["n", 5, 4]}, ["y"]), 2)
    (step,) = graph.steps
    assert step.reads == ("a", "b")
    assert step.operation is not None
    assert step.operation.attributes == {"transB": (1,)}


def test_axes_are_read_from_constants(tmp_path: Path) -> None:
    nodes = [node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)]
    graph = read_graph(write(tmp_path / "g.onnx", nodes, {"x": ["n", 3, 4]}, ["y"], axes=np.array([0, 2])), 2)
    assert graph.steps[0].operation is not None
    assert graph.steps[0].operation.attributes["axes"] == (0, 2)


def test_a_shape_that_depends_on_data_is_counted_as_unknown(tmp_path: Path) -> None:
    nodes = [node("NonZero", ["x"], ["where"]), node("Cast", ["where"], ["y"], to=1)]
    graph = read_graph(write(tmp_path / "g.onnx", nodes, {"x": ["n", 3]}, ["y"]), 2)
    assert graph.unknown == 2


def test_a_scan_runs_its_body_along_the_scanned_axis(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Add", ["state", "one"], ["next"]), node("Mul", ["next", "next"], ["out"])],
        "body",
        [info("state", 1, [4]), info("one", 1, [4])],
        [info("next", 1, [4]), info("out", 1, [4])],
    )
    nodes = [node("Scan", ["h", "xs"], ["last", "all"], body=body, num_scan_inputs=1)]
    graph = read_graph(write(tmp_path / "g.onnx", nodes, {"h": [4], "xs": [7, 4]}, ["last", "all"]), 1)
    assert [(step.kind, step.times) for step in graph.steps] == [("Add", 7), ("Mul", 7)]
    assert graph.unknown == 0
    assert graph.nodes == 3


def test_a_file_that_is_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match=r"g\.onnx: not a graph that can be planned"):
        read_graph(tmp_path / "g.onnx", 1)


def test_external_data_is_never_read(tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[3], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../secret")
    path = write(tmp_path / "g.onnx", [node("Add", ["x", "w"], ["y"])], {"x": ["n", 3]}, ["y"])
    model = onnx.load(path)
    model.graph.initializer.append(tensor)
    path.write_bytes(model.SerializeToString())
    assert read_graph(path, 2).sizes["x"] == 24
