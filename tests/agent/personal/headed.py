"""A tiny bundle whose graphs are real: two numbers, rectified with their opposites, and a linear layer over them."""

import hashlib
from pathlib import Path

import numpy as np

from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.graph_writer import Named, Node, write_graph
from protocol.bundle import PARAMETERS_FILE, Bundle, open_bundle
from protocol.manifest import (
    FORMAT,
    MANIFEST_FILE,
    Backend,
    FileEntry,
    Inference,
    Manifest,
    Port,
    Tensor,
    Variant,
    format_manifest,
)
from tests.tiny import safetensors

INPUTS, FEATURES, CLASSES = 2, 4, 3
TOTAL = CLASSES * FEATURES + CLASSES
_FLOAT, _INT = np.dtype(np.float32), np.dtype(np.int64)
_BODY = (
    Node("Neg", ("x",), ("minus",)),
    Node("Concat", ("x", "minus"), ("both",), {"axis": 1}),
    Node("Relu", ("both",), ("features",)),
    Node("Gemm", ("features", "head.weight", "head.bias"), ("scores",), {"transB": 1}),
)


def model(seed: int = 0) -> Vector:
    return np.random.default_rng(seed).normal(size=TOTAL).astype(np.float32)


def features_of(x: Vector) -> Vector:
    return np.asarray(np.maximum(np.concatenate([x, -x], axis=1), 0.0), np.float32)


def headed(root: Path, body: tuple[Node, ...] = _BODY, *, loss: str = "cross_entropy", inputs: int = INPUTS) -> Bundle:
    """Writes and opens it; its backend is said to be the portable one, of which the evaluation graph alone is here."""
    root.mkdir(parents=True)
    weight, bias = np.zeros((CLASSES, FEATURES), np.float32), np.zeros(CLASSES, np.float32)
    x, scores = Named("x", (8, inputs), _FLOAT), Named("scores", (8, CLASSES), _FLOAT)
    given = Named("head.weight", (CLASSES, FEATURES), _FLOAT), Named("head.bias", (CLASSES,), _FLOAT)
    loss_node = Node("ReduceMean", ("scores",), ("loss",), {"keepdims": 0})
    evaluation = write_graph((*body, loss_node), (x, *given), (Named("loss", (), _FLOAT), scores), {})
    inference = write_graph(body, (x,), (scores,), {"head.weight": weight + 7.0, "head.bias": bias + 9.0})
    files = {
        PARAMETERS_FILE: safetensors({"head.weight": weight, "head.bias": bias}),
        "portable/eval.onnx": _any_batch(evaluation),
        "inference.onnx": _any_batch(inference),
    }
    for name, data in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    deployed = files["inference.onnx"]
    places = {
        "head.weight": deployed.index((weight + 7.0).tobytes()),
        "head.bias": deployed.index((bias + 9.0).tobytes()),
    }
    manifest = Manifest(
        format=FORMAT,
        line="headed",
        version=1,
        tensors=(
            Tensor("head.weight", (CLASSES, FEATURES), 0, "parameter"),
            Tensor("head.bias", (CLASSES,), CLASSES * FEATURES, "parameter"),
        ),
        inputs=(Port("x", (inputs,), "float32"),),
        targets=(Port("y", (), "int64", classes=CLASSES),),
        outputs=(Port("scores", (CLASSES,), "float32"),),
        loss=loss,
        metrics=(),
        files=tuple(FileEntry(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()),
        variants=(Variant("full", {"portable": Backend({"eval": "portable/eval.onnx"}, requires="onnxruntime")}),),
        inference=Inference("inference.onnx", places),
        parity={},
    )
    (root / MANIFEST_FILE).write_bytes(format_manifest(manifest))
    return open_bundle(root)


def _any_batch(graph: bytes) -> bytes:
    """The first size of every shape, which is written as 8, by a name instead."""
    # Dimension { dim_value: 8 } and { dim_param: "" } take as many bytes.
    return graph.replace(b"\x0a\x02\x08\x08", b"\x0a\x02\x12\x00")
