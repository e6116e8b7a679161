"""A graph that is not whole in itself, or over a limit, is refused before any runtime sees it."""

from collections.abc import Callable

import numpy as np
import pytest

from edge_agent.runtimes import graph_check
from edge_agent.runtimes.graph_check import ARTIFACT, INFERENCE, PORTABLE, check_graph
from edge_agent.runtimes.graph_writer import Named, Node, write_graph
from edge_agent.runtimes.onnx_session import session_of
from protocol.errors import BundleError
from tests.bundles import Zoo
from tests.runtimes.messages import Message, blob, model, node, number, tensor, values

GRAPH = write_graph(
    [Node("Add", ["x", "c"], ["y"])],
    [Named("x", [2], np.dtype(np.float32))],
    [Named("y", [2], np.dtype(np.float32))],
    {"c": np.ones(2, np.float32)},
)
ENTRY = blob(13, blob(1, b"location") + blob(2, b"weights.bin"))
IN_MEMORY = blob(13, blob(1, b"location") + blob(2, b"*/_ORT_MEM_ADDR_/*"))
FAR = tensor(b"w", [2]) + ENTRY


def refused(graph: bytes, words: str) -> None:
    with pytest.raises(BundleError, match=words) as refusal:
        check_graph("train.onnx", graph)
    assert str(refusal.value).startswith("train.onnx: ")


def test_a_graph_of_ours_is_taken_and_runs() -> None:
    check_graph("train.onnx", GRAPH)
    found = session_of(GRAPH, "train.onnx", 1).run(None, {"x": np.zeros(2, np.float32)})
    assert found[0].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("name", ["cnn_1d", "cnn_with_batch_norm", "transformer_with_dropout"])
def test_every_graph_of_an_exported_bundle_is_taken(zoo: Zoo, name: str) -> None:
    bundle = zoo(name)
    for entry in bundle.manifest.files:
        if entry.path.endswith(".onnx"):
            kind = INFERENCE if entry.path.startswith("inference") else PORTABLE
            check_graph(entry.path, bundle.read(entry.path), ARTIFACT if "ort-training" in entry.path else kind)


@pytest.mark.parametrize(
    "place",
    [
        lambda far: model(blob(5, far)),
        lambda far: model(blob(15, blob(1, far))),
        lambda far: model(blob(15, blob(2, far))),
        lambda far: model(node(blob(5, blob(1, b"value") + blob(5, far)))),
        lambda far: model(node(blob(5, blob(1, b"value") + blob(10, far)))),
        lambda far: model(node(blob(5, blob(22, blob(1, far))))),
        lambda far: model(node(blob(5, blob(23, blob(2, far))))),
    ],
    ids=["initialiser", "sparse values", "sparse indices", "attribute", "attributes", "sparse attribute", "of several"],
)
@pytest.mark.parametrize("external", [ENTRY, IN_MEMORY, number(14, 1), number(14, (1 << 32) + 1)])
def test_external_data_is_refused_wherever_it_stands(place: Callable[[bytes], bytes], external: bytes) -> None:
    check_graph("train.onnx", place(values(b"w", [2])))
    refused(place(values(b"w", [2]) + external), "external data, which is never loaded")


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (model(node(blob(5, blob(6, blob(5, FAR))))), "a graph within itself"),
        (model(node(blob(5, blob(11, blob(5, FAR))))), "a graph within itself"),
        (model(b"", blob(25, blob(1, b"f"))), "functions"),
        (model(b"", blob(20, blob(2, blob(5, FAR)))), "training information"),
        (model(b"", blob(26, blob(1, b"gpu"))), "field 26 of Model is not known"),
    ],
)
def test_what_could_hide_a_graph_is_refused_itself(graph: bytes, words: str) -> None:
    refused(graph, words)


@pytest.mark.parametrize(
    ("operator", "domain"),
    [("Loop", ""), ("If", ""), ("RandomNormal", ""), ("ConvGrad", "com.microsoft"), ("PythonOp", "com.microsoft")],
)
def test_an_operator_that_no_exported_graph_has_is_refused(operator: str, domain: str) -> None:
    refused(model(node(b"", operator.encode(), domain.encode())), f"the operator '{operator}' of the domain '{domain}'")


def test_gradients_of_the_training_wheel_run_in_its_own_artifacts_alone() -> None:
    imported = blob(8, blob(1, b"com.microsoft") + number(2, 1))
    graph = model(node(b"", b"ConvGrad", b"com.microsoft"), imported)
    check_graph("training_model.onnx", graph, ARTIFACT)
    refused(graph, "com.microsoft")
    with pytest.raises(BundleError, match="PythonOp"):
        check_graph("training_model.onnx", model(node(b"", b"PythonOp", b"com.microsoft"), imported), ARTIFACT)


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (model(b"", opset=21), "opset 21 is outside 17 to 20"),
        (model(b"", opset=16), "opset 16 is outside 17 to 20"),
        (model(b"", ir=7), r"format \(IR\) 7 is outside 8 to 10"),
        (model(b"", ir=-1), r"format \(IR\) -1 is outside"),
        (model(b"", blob(8, blob(1, b"evil.ops") + number(2, 1))), "the domain 'evil.ops' is none"),
        (model(b"", blob(8, blob(1, b"ai.onnx") + number(2, 18))), "declared twice"),
        (number(1, 8) + blob(7, b""), "no version of the standard's operators"),
        (model(b"") + blob(7, b""), "graph of Model is there twice"),
        (model(blob(5, tensor(b"w", [1 << 40, 1 << 40]))), "a size outside"),
        (model(blob(5, tensor(b"w", [1 << 20, 1 << 20]))), "more than"),
        (model(blob(5, tensor(b"w", [0, 1 << 30, 1 << 30]))), "more than"),
        (model(blob(5, tensor(b"w", [-1]))), "a size outside"),
        (model(blob(5, tensor(b"w", [1] * 17))), "17 dimensions"),
        (model(blob(5, tensor(b"w", [3]) + blob(9, bytes(8)))), "2 values where its sizes say 3"),
        (model(blob(5, tensor(b"w", [2]))), "0 values where its sizes say 2"),
        (model(blob(5, tensor(b"w", [0], kind=8))), "has type 8"),
        (model(blob(5, tensor(b"w", [2]) + blob(9, bytes(8)) + blob(4, bytes(8)))), "its data twice"),
        (model(node(blob(1, b"x" * 1025))), "over the limit of 1024"),
        (model(blob(10, b"x" * (1 << 17))), "over the limit of 65536"),
        (model(b"".join(blob(16, blob(2, b"x" * 60_000)) for _ in range(20))), "texts beside the graph"),
    ],
)
def test_each_limit_is_named_with_the_value(graph: bytes, words: str) -> None:
    refused(graph, words)


@pytest.mark.parametrize(
    ("limit", "graph"),
    [
        ("MAX_NODES", model(node() * 3)),
        ("MAX_CONSTANTS", model(blob(5, values(b"w", [2])) * 3)),
        ("MAX_FIELDS", model(blob(1, b""))),
    ],
)
def test_nodes_constants_and_fields_are_counted(monkeypatch: pytest.MonkeyPatch, limit: str, graph: bytes) -> None:
    monkeypatch.setattr(graph_check, limit, 2)
    refused(graph, "more than 2")


def test_a_file_over_its_kinds_limit_is_refused_unread() -> None:
    with pytest.raises(BundleError, match="bytes are over the limit"):
        check_graph("train.onnx", memoryview(bytearray(PORTABLE.most_bytes + 1)))


@pytest.mark.parametrize("end", range(0, len(GRAPH), 7))
def test_a_graph_that_ends_early_is_refused(end: int) -> None:
    with pytest.raises(BundleError):
        check_graph("train.onnx", GRAPH[:end])


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (b"\x0b", "wire type 3"),
        (b"\x0f", "wire type 7"),
        (b"\x02\x00", "number 0"),
        (b"\xff\xff\xff\xff\x0f\x00", "more than 2 bytes"),
        (b"\xa0\x00\x01", "longer than it has to be"),
        (b"\x08" + b"\xff" * 10, "more than 10 bytes"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "longer than it has to be"),
        (b"\x3a\xff\xff\xff\xff\x0f", "bytes where 0 are left"),
        (b"\x3a\x05ab", "5 bytes where 2 are left"),
        (b"\x15ab", "ends early"),
    ],
)
def test_what_readers_of_protobuf_differ_in_is_refused(written: bytes, words: str) -> None:
    refused(written, words)


def test_types_do_not_nest_without_end() -> None:
    kind: Message = b""
    for _ in range(40):
        kind = blob(4, blob(1, kind))
    refused(model(blob(11, blob(1, b"x") + blob(2, kind))), "nest deeper")
