"""A tiny bundle for tests: softmax regression on three numbers, run by the NumPy backend, no torch needed."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.runtimes.safetensors import format_tensors
from protocol.bundle import MASK_FILE, PARAMETERS_FILE, REFERENCE_FILE, Bundle, open_bundle
from protocol.manifest import (
    FORMAT,
    MANIFEST_FILE,
    Backend,
    FileEntry,
    Inference,
    Manifest,
    Port,
    Reference,
    Tensor,
    Variant,
    format_manifest,
)
from sparse.masks import pack_mask

FEATURES, CLASSES = 3, 2
TOTAL = FEATURES * CLASSES + CLASSES


def safetensors(tensors: dict[str, npt.NDArray[np.float32]]) -> bytes:
    """The safetensors format, small enough to write here."""
    header, data = {}, b""
    for name, value in tensors.items():
        raw = value.astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def reference() -> bytes:
    """A record of softmax regression from zeros on four examples, its steps written out here once more."""
    x = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [-1, 0, 0]], np.float32)
    y = np.array([0, 1, 0, 1])
    w, velocity = np.zeros((CLASSES, FEATURES + 1)), np.zeros((CLASSES, FEATURES + 1))
    ones = np.hstack([x, np.ones((4, 1))])
    gradients = []
    for _ in range(3):
        p = np.exp(ones @ w.T)
        p /= p.sum(axis=1, keepdims=True)
        gradients.append((p - np.eye(CLASSES)[y]).T @ ones / 4)
        velocity = 0.9 * velocity + gradients[-1] + 1e-3 * w
        w = w - 0.05 * velocity
    found = {
        "loss": [np.full(1, np.log(2))],
        "gradient": [gradients[0][:, :-1], gradients[0][:, -1]],
        "statistics": [],
        "three steps": [w[:, :-1], w[:, -1]],
        "evaluation": [np.full(1, np.log(2)), np.zeros((4, CLASSES))],
    }
    arrays: dict[str, npt.NDArray[Any]] = {"batch/x": x.ravel(), "batch/y": y.astype(np.uint8)}
    for kind, parts in found.items():
        flat = [part.astype(np.float32).ravel() for part in parts]
        arrays[f"values/full/{kind}"] = np.concatenate([np.zeros(0, np.float32), *flat])
        arrays[f"magnitudes/full/{kind}"] = np.array([np.abs(part).max() for part in flat], np.float32)
    return format_tensors(arrays, {"format": "1", "examples": "4", "torch": "by hand"})


def write_bundle(
    root: Path,
    *,
    version: int = 1,
    recorded: bool = False,
    mask: npt.NDArray[np.bool_] | None = None,
    features: int = FEATURES,
    values: npt.NDArray[np.float32] | None = None,
) -> Bundle:
    """Writes a bundle of zeros and opens it; its variant `bias` trains the bias alone. recorded: with reference steps,
    of the variant `full`, which is then the only one. mask: bool[TOTAL], that the bundle brings along. features: for
    models that are large enough to be worth compressing. values: of weight and bias, in place of zeros."""
    root.mkdir(parents=True, exist_ok=True)
    start = np.zeros(CLASSES * (features + 1), np.float32) if values is None else values
    weight, bias = start[:-CLASSES].reshape(CLASSES, features), start[-CLASSES:]
    files = {
        PARAMETERS_FILE: safetensors({"weight": weight, "bias": bias}),
        # Not a graph: the NumPy backend needs none, and it stands for a file that every device must fetch.
        "numpy/graph.bin": bytes(range(256)) * 600,
        "numpy/bias/graph.bin": bytes(range(255, -1, -1)) * 300,
        "inference.onnx": bytes((features + 1) * CLASSES * 4),
    }
    if recorded:
        files[REFERENCE_FILE] = reference()
    if mask is not None:
        files[MASK_FILE] = pack_mask(mask)
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    variants = (
        Variant("full", {"numpy": Backend({"graph": "numpy/graph.bin"}, requires="numpy")}),
        Variant("bias", {"numpy": Backend({"graph": "numpy/bias/graph.bin"}, requires="numpy")}, frozen=("weight",)),
    )
    manifest = Manifest(
        format=FORMAT,
        line="tiny",
        version=version,
        tensors=(
            Tensor("weight", (CLASSES, features), 0, "parameter", prunable=True),
            Tensor("bias", (CLASSES,), features * CLASSES, "parameter"),
        ),
        inputs=(Port("x", (features,), "float32"),),
        targets=(Port("y", (), "int64", classes=CLASSES),),
        outputs=(Port("scores", (CLASSES,), "float32"),),
        loss="cross_entropy",
        metrics=("accuracy",),
        files=tuple(FileEntry(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()),
        variants=variants[:1] if recorded else variants,
        inference=Inference("inference.onnx", {"weight": 0, "bias": features * CLASSES * 4}),
        parity={},
        reference=Reference(REFERENCE_FILE, hashlib.sha256(bytes(TOTAL * 4)).hexdigest()) if recorded else None,
        mask=None if mask is None else MASK_FILE,
    )
    (root / MANIFEST_FILE).write_bytes(format_manifest(manifest))
    return open_bundle(root)


def write_shard(path: Path, *, examples: int = 40, seed: int = 0, features: int = FEATURES) -> Path:
    """Separable data: the class is whether the first number is positive."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, features)).astype(np.float32)
    np.savez(path, x=x, y=(x[:, 0] > 0).astype(np.int64))
    return path
