"""ONNX Runtime's training artifacts from a graph whose first output is the loss."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx

from edge_agent.runtimes.onnx_session import first_line, native_training, session_options, switch_telemetry_off
from export.capture import OPSET, layer_of
from protocol.errors import BundleError
from protocol.manifest import Tensor

MAX_IR = 10

# What to use where an operator has no gradient in onnxruntime-training 1.19.2.
INSTEAD: Mapping[str, str] = {
    "AveragePool": "nn.AvgPool2d without padding",
    "ConvTranspose": "nn.Upsample and a convolution",
    "CumSum": "a matrix product with torch.tril(torch.ones(n, n))",
    "Einsum": "torch.matmul with permute and reshape",
    "ReduceMax": "nn.MaxPool1d or nn.MaxPool2d with the size of the map, or a mean",
    "Resize": "nearest by a whole number, or bilinear,",
    "SplitToSequence": "slices, as in x[:, :n],",
}


def generate(model: onnx.ModelProto, tensors: tuple[Tensor, ...], folder: Path) -> None:
    """Writes training_model.onnx, optimizer_model.onnx and checkpoint into `folder`.

    Raises BundleError naming the layer and operator that the runtime has no gradient for.
    """
    switch_telemetry_off()
    from onnxruntime.training import artifacts

    trained = [t.name for t in tensors if t.kind == "parameter"]
    rest = [t.name for t in tensors if t.kind != "parameter"]
    with _silent_stderr():
        try:
            artifacts.generate_artifacts(
                model,
                requires_grad=trained,
                frozen_params=rest,
                loss=None,
                optimizer=artifacts.OptimType.AdamW,
                artifact_directory=folder,
            )
        except (RuntimeError, onnx.shape_inference.InferenceError) as error:
            raise BundleError(explain(model, str(error))) from error
    # Its evaluation graph breaks on BatchNorm; ours is exported from the module in evaluation mode.
    (folder / "eval_model.onnx").unlink()
    _stamp(folder / "optimizer_model.onnx")


def _stamp(path: Path) -> None:
    """The generator stamps the installed onnx package's versions, which this runtime refuses to read."""
    model = onnx.load(path, load_external_data=False)
    model.ir_version = min(model.ir_version, MAX_IR)
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = min(opset.version, OPSET)
    path.write_bytes(model.SerializeToString())


def check(model: onnx.ModelProto, train: Path, optimizer: Path, checkpoint: Path) -> None:
    """Loads the artifacts. Of the optimiser that proves its stamps: the agent updates by itself, others may use it."""
    native = native_training()
    assert native is not None, "the export extra brings the training wheel"
    device = native.OrtDevice(native.OrtDevice.cpu(), native.OrtDevice.default_memory(), 0)
    state = native.load_checkpoint(str(checkpoint))
    try:
        module = native.Module(str(train), state, None, device, session_options(1))
    except RuntimeError as error:
        raise BundleError(explain(model, first_line(error))) from error
    try:
        native.Optimizer(str(optimizer), state, device, session_options(1))
    except RuntimeError as error:
        raise BundleError(f"{optimizer.name}: the training runtime cannot load it: {first_line(error)}") from error
    del module


def explain(model: onnx.ModelProto, said: str) -> str:
    """What the runtime's message means for the user: the layer, the operator, and what to use instead."""
    found = re.search(r"gradient builder has not been registered: (\w+) for node (\S*)", said)
    if found is None:
        return _unknown(model, said)
    operator, name = found.groups()
    nodes = [n for n in model.graph.node if n.name == name] or [n for n in model.graph.node if n.op_type == operator]
    where = layer_of(nodes[0]) if nodes else "the module"
    instead = INSTEAD.get(operator, "other operators")
    return f"{where}: operator {operator} has no gradient in onnxruntime-training; use {instead} in its place"


def _unknown(model: onnx.ModelProto, said: str) -> str:
    for node in model.graph.node:
        if node.op_type in INSTEAD:
            return (
                f"{layer_of(node)}: operator {node.op_type} has no usable gradient in onnxruntime-training; use "
                f"{INSTEAD[node.op_type]} in its place"
            )
    last = said.strip().splitlines()[-1][-300:] if said.strip() else "nothing"
    return f"module: onnxruntime-training cannot build its gradients; simplify the model. It says: {last}"


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """The generator's C++ side prints some 40 lines a model straight to file descriptor 2, whatever the log level."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
