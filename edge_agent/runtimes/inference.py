"""A deployed model file, run as its users will run it: a plain onnxruntime session over examples, in batches."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_agent.runtimes import onnx_session
from edge_agent.runtimes.engine import Batch
from edge_agent.runtimes.metrics import measure
from protocol.errors import BundleError
from protocol.manifest import Manifest


def evaluate_inference(
    path: Path, manifest: Manifest, data: Batch, batch_size: int = 256, threads: int = 1
) -> Mapping[str, float]:
    """The manifest's metrics of a deployed model, as means over all examples. Raises BundleError."""
    try:
        session: Any = onnx_session.deployed(path, threads)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); write one with export-model") from None
    found = {node.name for node in session.get_inputs()}
    wanted = [port.name for port in manifest.inputs]
    if not found <= set(wanted):
        raise BundleError(f"{path}: takes {', '.join(sorted(found))} where the bundle's inputs are {', '.join(wanted)}")
    totals: dict[str, float] = {}
    for start in range(0, len(data), batch_size):
        batch = Batch(
            tuple(a[start : start + batch_size] for a in data.inputs),
            tuple(a[start : start + batch_size] for a in data.targets),
        )
        feed = {name: array for name, array in zip(wanted, batch.inputs, strict=True) if name in found}
        output = session.run(None, feed)[0]
        for name, value in measure(manifest.metrics, output, batch.targets[0]).items():
            totals[name] = totals.get(name, 0.0) + value * len(batch)
    return {name: total / len(data) for name, total in totals.items()}
