"""The gradient engine on ONNX Runtime's training artifacts, by its C classes and without torch.

Only the gradient is asked of the runtime: its optimisers hide their moments and its gradients cannot be written back,
so the update is ours (see optimizers.py). The training graph's outputs are the loss, then every running statistic
after the pass, in manifest order; the checkpoint's contiguous order is the manifest's order, so that a model goes in
with one call.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from edge_agent.runtimes import onnx_session
from edge_agent.runtimes.dropout import masks
from edge_agent.runtimes.engine import Batch, Evaluation, StepResult, Vector
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.graph_check import ARTIFACT, check_graph
from protocol.bundle import Bundle
from protocol.errors import BundleError, ConfigurationError, DataError
from protocol.manifest import Manifest

NAME = "ort-training"
# Of a tensor in a checkpoint: its name and sizes, and the flatbuffer's own tables.
_ENTRY_BYTES = 4096


class OrtTrainingEngine:
    """Runs one variant of a bundle. The arrays of a StepResult are reused by the next step."""

    def __init__(self, bundle: Bundle, variant: str = "full", threads: int = 1) -> None:
        manifest = bundle.manifest
        self._bundle, self._manifest, self._threads = bundle, manifest, threads
        held = next(v for v in manifest.variants if v.name == variant)
        self._files, self._dropouts = held.backends[NAME].files, held.dropouts
        self._native = _native()
        self._state, self._module = self._load()
        if self._module.get_parameters_size(False) != manifest.total:
            raise BundleError(f"{self._files['checkpoint']}: does not hold the manifest's tensors; export again")
        trained = [t for t in manifest.tensors if t.kind == "parameter"]
        running = [t for t in manifest.tensors if t.kind == "buffer"]
        self._parameters = [self._state.get_parameter(t.name) for t in trained]
        self._gradient = np.zeros(manifest.parameters, dtype=np.float32)
        self._gradient_parts = [self._gradient[t.offset : t.offset + t.size].reshape(t.shape) for t in trained]
        self._buffers = np.zeros(manifest.buffers, dtype=np.float32)
        start = manifest.parameters
        self._buffer_parts = [self._buffers[t.offset - start :][: t.size].reshape(t.shape) for t in running]
        self._evaluator: Evaluator | None = None

    @property
    def name(self) -> str:
        return NAME

    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        """One training-mode pass. model: float32[total], not changed. seed: of the dropouts' masks, not negative."""
        values = onnx_session.arrays(self._manifest, batch) + masks(self._dropouts, len(batch), seed)
        self._write(model)
        # Gradients accumulate in the runtime until they are reset.
        self._module.lazy_reset_grad()
        outputs = self._native.OrtValueVector()
        try:
            self._module.train_step(values, outputs)
        except onnx_session.failures() as error:
            raise DataError(f"batch: the runtime refuses it: {onnx_session.first_line(error)}") from None
        for part, parameter in zip(self._gradient_parts, self._parameters, strict=True):
            part[...] = parameter.grad.numpy()
        for i, part in enumerate(self._buffer_parts):
            part[...] = outputs[1 + i].numpy()
        return StepResult(float(outputs[0].numpy()), self._gradient, self._buffers)

    def evaluate(self, model: Vector, batch: Batch) -> Evaluation:
        """One evaluation-mode pass. model: float32[total], not changed."""
        if self._evaluator is None:
            self._evaluator = Evaluator(self._bundle, self._files["eval"], self._threads)
        return self._evaluator.evaluate(model, batch)

    def _write(self, model: Vector) -> None:
        assert model.shape == (self._manifest.total,), f"{model.shape} is no model of this bundle"
        flat = np.ascontiguousarray(model, dtype=np.float32)
        value = self._native.OrtValue.ortvalue_from_numpy(flat, self._device())
        self._module.copy_buffer_to_parameters(value, False)

    def _device(self) -> Any:
        return self._native.OrtDevice(self._native.OrtDevice.cpu(), self._native.OrtDevice.default_memory(), 0)

    def _load(self) -> tuple[Any, Any]:
        train, checkpoint = self._files["train"], self._files["checkpoint"]
        graph, start = self._bundle.read(train), self._bundle.read(checkpoint)
        check_graph(train, graph, ARTIFACT)
        _check_size(checkpoint, start, self._manifest)
        try:
            with _in_memory(start) as path:
                state = self._native.load_checkpoint(path)
            options = onnx_session.session_options(self._threads)
            with _in_memory(graph) as path:
                module = self._native.Module(path, state, None, self._device(), options)
        except RuntimeError as error:
            raise BundleError(
                f"{train}: the training runtime cannot load it: {onnx_session.first_line(error)}"
            ) from None
        return state, module


def why_not() -> str | None:
    """Why this backend cannot run here, with the remedy, or None if it can."""
    try:
        native = onnx_session.native_training()
    except ConfigurationError as error:
        return str(error)
    if native is None:
        version = onnx_session.import_onnxruntime().__version__
        return (
            f"onnxruntime {version} here cannot train; in an environment of its own, "
            "pip install onnxruntime-training-cpu==1.19.2 (Linux x86-64)"
        )
    return None


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A path to these very bytes, for the C classes take nothing else: what was checked is what is loaded, whatever
    becomes of the file meanwhile. No file lies beside it that external data could name."""
    descriptor = os.memfd_create("sparsefleet", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{descriptor}"


def _check_size(name: str, checkpoint: bytes, manifest: Manifest) -> None:
    """A checkpoint is a flatbuffer of the runtime's own, which nothing of ours reads: its bytes are those that the
    manifest names by SHA-256, and their number is bounded by the model that they hold."""
    most = 2 * 4 * manifest.total + _ENTRY_BYTES * (len(manifest.tensors) + 1)
    if len(checkpoint) > most:
        raise BundleError(
            f"{name}: {len(checkpoint)} bytes are over the limit of {most} for this model; export the bundle again"
        )


def _native() -> Any:
    reason = why_not()
    if reason is not None:
        raise ConfigurationError(f"{NAME}: {reason}")
    return onnx_session.native_training()
