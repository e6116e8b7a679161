"""Zoo models as device processes are given them: a bundle, and the examples in a file."""

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx

from benchmarks.zoo import spec_of
from export.bundle import write_bundle
from export.files import MADE
from export.parity import batch_of
from export.spec import TrainingSpec
from protocol.bundle import Bundle, open_bundle


def write(name: str, folder: Path, examples: int, seed: int) -> Bundle:
    """Exports the model to `folder`, with parity against torch, and writes its examples beside it, named as edge-agent
    train looks for them."""
    return write_spec(spec_of(name, examples, seed), name, folder)


def write_spec(spec: TrainingSpec, name: str, folder: Path, backends: Collection[str] = MADE) -> Bundle:
    """The same of a spec that is the zoo's model, or was made from it."""
    write_bundle(spec, folder, line=name.replace("_", "-"), backends=backends)
    (inputs,), (targets,) = batch_of(spec).inputs, batch_of(spec).targets
    np.savez(data_beside(folder), x=inputs, y=targets)
    return open_bundle(folder)


def data_beside(folder: Path) -> Path:
    return folder.with_suffix(".npz")


def nodes(bundle: Bundle, backend: str) -> int | None:
    """How many nodes the backend's training graph has, bodies of loops included; None where there is no graph."""
    held = bundle.manifest.variants[0].backends
    if backend not in held:
        return None
    return _count(onnx.load(bundle.path(held[backend].files["train"])).graph)


def _count(graph: onnx.GraphProto) -> int:
    bodies = [a.g for node in graph.node for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    return len(graph.node) + sum(_count(body) for body in bodies)
