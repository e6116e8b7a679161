"""A tiny bundle with a width tier for tests: one hidden layer of four units, of which the tier has two. No torch."""

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protocol.bundle import PARAMETERS_FILE, Bundle, open_bundle
from protocol.manifest import (
    FORMAT,
    FULL,
    MANIFEST_FILE,
    Backend,
    ChannelGroup,
    FileEntry,
    Inference,
    Load,
    Manifest,
    Port,
    Segment,
    Tensor,
    Variant,
    format_manifest,
)
from tests.tiny import CLASSES, FEATURES, safetensors

HIDDEN, TIER, KEPT = 4, "tier-050", 2
SHAPES = {
    "hidden.weight": (HIDDEN, FEATURES),
    "hidden.bias": (HIDDEN,),
    "head.weight": (CLASSES, HIDDEN),
    "head.bias": (CLASSES,),
}


def initial() -> npt.NDArray[np.float32]:
    """The exported model, no value twice."""
    count = sum(int(np.prod(shape)) for shape in SHAPES.values())
    return np.random.default_rng(5).normal(size=count).astype(np.float32)


def write_bundle(root: Path) -> Bundle:
    """Writes the bundle and opens it."""
    root.mkdir(parents=True, exist_ok=True)
    tensors, values, model, offset = [], {}, initial(), 0
    for name, shape in SHAPES.items():
        tensors.append(Tensor(name, shape, offset, "parameter", prunable=len(shape) == 2))
        values[name] = model[offset : offset + tensors[-1].size].reshape(shape)
        offset += tensors[-1].size
    files = {
        PARAMETERS_FILE: safetensors(values),
        # Not graphs: the NumPy backend needs none, and they stand for files that devices must fetch.
        "numpy/graph.bin": bytes(range(256)) * 40,
        f"numpy/{TIER}/graph.bin": bytes(range(255, -1, -1)) * 20,
        "inference.onnx": bytes(4 * offset),
    }
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    units = Segment("hidden", HIDDEN)
    manifest = Manifest(
        format=FORMAT,
        line="tiny-tiers",
        version=1,
        tensors=tuple(tensors),
        inputs=(Port("x", (FEATURES,), "float32"),),
        targets=(Port("y", (), "int64", classes=CLASSES),),
        outputs=(Port("scores", (CLASSES,), "float32"),),
        loss="cross_entropy",
        metrics=("accuracy",),
        files=tuple(FileEntry(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()),
        variants=(
            Variant(FULL, {"numpy": Backend({"graph": "numpy/graph.bin"}, "numpy")}, load=Load(60, 1 << 20, 1 << 10)),
            Variant(
                TIER,
                {"numpy": Backend({"graph": f"numpy/{TIER}/graph.bin"}, "numpy")},
                keep={"hidden": KEPT},
                load=Load(30, 1 << 19, 1 << 9),
            ),
        ),
        inference=Inference("inference.onnx", {t.name: 4 * t.offset for t in tensors}),
        parity={},
        groups=(ChannelGroup("hidden", HIDDEN),),
        axes={
            "hidden.weight": ((units,), (Segment(None, FEATURES),)),
            "hidden.bias": ((units,),),
            "head.weight": ((Segment(None, CLASSES),), (units,)),
        },
    )
    (root / MANIFEST_FILE).write_bytes(format_manifest(manifest))
    return open_bundle(root)
