"""The gradient engine on ONNX Runtime's training artifacts, by its C classes and without torch.

Only the gradient is asked of the runtime: its optimisers hide their moments and its gradients cannot be written back,
so the update is ours (see optimizers.py). The training graph's outputs are the loss, then every running statistic
after the pass, in manifest order; the checkpoint's contiguous order is the manifest's order, so that a model goes in
with one call.
"""

from typing import Any

import numpy as np

from edge_agent.runtimes import onnx_session
from edge_agent.runtimes.dropout import masks
from edge_agent.runtimes.engine import Batch, Evaluation, StepResult, Vector
from edge_agent.runtimes.evaluator import Evaluator
from protocol.bundle import Bundle
from protocol.errors import BundleError, ConfigurationError, DataError

NAME = "ort-training"


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
        train = self._bundle.path(self._files["train"])
        # The C classes take paths only; the check is made on the bytes beforehand.
        onnx_session.read_graph(train)
        try:
            state = self._native.load_checkpoint(str(self._bundle.path(self._files["checkpoint"])))
            options = onnx_session.session_options(self._threads)
            module = self._native.Module(str(train), state, None, self._device(), options)
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


def _native() -> Any:
    reason = why_not()
    if reason is not None:
        raise ConfigurationError(f"{NAME}: {reason}")
    return onnx_session.native_training()
