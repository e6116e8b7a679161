"""A bundle that nobody runs: so many parameters and no graph, for fleets whose updates are noise."""

import hashlib
import json
import struct
from pathlib import Path

import numpy as np

from protocol.bundle import PARAMETERS_FILE, Bundle, open_bundle
from protocol.layout import layout_of
from protocol.manifest import (
    FORMAT,
    FULL,
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
from protocol.messages import Task
from sparse.codecs import encode_update, parse_codec


def write(root: Path, parameters: int) -> Bundle:
    """Writes it to the folder `root`."""
    root.mkdir(parents=True)
    values = np.zeros(parameters, "<f4").tobytes()
    entry = {"weight": {"dtype": "F32", "shape": [parameters], "data_offsets": [0, len(values)]}}
    text = json.dumps(entry).encode()
    text += b" " * (-len(text) % 8)
    files = {PARAMETERS_FILE: struct.pack("<Q", len(text)) + text + values, "graph": b"none", "inference": b"none"}
    for name, data in files.items():
        (root / name).write_bytes(data)
    manifest = Manifest(
        format=FORMAT,
        line="noise",
        version=1,
        tensors=(Tensor("weight", (parameters,), 0, "parameter"),),
        inputs=(Port("x", (3,), "float32"),),
        targets=(Port("y", (), "int64", classes=2),),
        outputs=(Port("scores", (2,), "float32"),),
        loss="cross_entropy",
        metrics=("accuracy",),
        files=tuple(FileEntry(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()),
        variants=(Variant(FULL, {"none": Backend({"train": "graph"}, requires="nothing")}),),
        inference=Inference("inference", {}),
        parity={},
    )
    (root / MANIFEST_FILE).write_bytes(format_manifest(manifest))
    return open_bundle(root)


def update(bundle: Bundle, task: Task, rng: np.random.Generator) -> bytes:
    """The payload of an update for a task: small noise in every parameter."""
    layout = layout_of(bundle.manifest, FULL)
    delta = rng.standard_normal(layout.n_parameters, dtype=np.float32) * np.float32(1e-3)
    nothing = np.zeros(layout.n_parameters, np.float32)
    return encode_update(delta, np.zeros(0, np.float32), nothing, parse_codec(task.codec), layout.digest)[0]
