"""A tiny bundle for tests: softmax regression on three numbers, run by the NumPy backend, no torch needed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

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


def write_bundle(root: Path, *, version: int = 1) -> Bundle:
    """Writes a bundle of zeros and opens it."""
    root.mkdir(parents=True, exist_ok=True)
    weight, bias = np.zeros((CLASSES, FEATURES), np.float32), np.zeros(CLASSES, np.float32)
    files = {
        PARAMETERS_FILE: safetensors({"weight": weight, "bias": bias}),
        # Not a graph: the NumPy backend needs none, and it stands for a file that every device must fetch.
        "numpy/graph.bin": bytes(range(256)) * 600,
        "inference.onnx": bytes(TOTAL * 4),
    }
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    manifest = Manifest(
        format=FORMAT,
        line="tiny",
        version=version,
        tensors=(
            Tensor("weight", (CLASSES, FEATURES), 0, "parameter", prunable=True),
            Tensor("bias", (CLASSES,), FEATURES * CLASSES, "parameter"),
        ),
        inputs=(Port("x", (FEATURES,), "float32"),),
        targets=(Port("y", (), "int64", classes=CLASSES),),
        outputs=(Port("scores", (CLASSES,), "float32"),),
        loss="cross_entropy",
        metrics=("accuracy",),
        files=tuple(FileEntry(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()),
        variants=(Variant("full", {"numpy": Backend({"graph": "numpy/graph.bin"}, requires="numpy")}),),
        inference=Inference("inference.onnx", {"weight": 0, "bias": FEATURES * CLASSES * 4}),
        parity={},
    )
    (root / MANIFEST_FILE).write_bytes(format_manifest(manifest))
    return open_bundle(root)


def write_shard(path: Path, *, examples: int = 40, seed: int = 0) -> Path:
    """Separable data: the class is whether the first number is positive."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(examples, FEATURES)).astype(np.float32)
    np.savez(path, x=x, y=(x[:, 0] > 0).astype(np.int64))
    return path
