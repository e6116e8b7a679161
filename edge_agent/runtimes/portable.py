"""The gradient engine on any stock onnxruntime: one graph of standard operators computes loss, gradients and buffers.

Nothing is copied between steps: the graph's inputs are bound to slices of the model vector, its outputs to slices of
one gradient vector, once, and again only when a caller hands in another model.
"""

from typing import Any

import numpy as np

from edge_agent.runtimes import onnx_session
from edge_agent.runtimes.dropout import masks
from edge_agent.runtimes.engine import Array, Batch, Evaluation, StepResult, Vector
from edge_agent.runtimes.evaluator import Evaluator
from protocol.bundle import Bundle
from protocol.errors import BundleError, ConfigurationError, DataError
from protocol.manifest import GRADIENT, METRIC, NEXT

NAME = "portable"


class PortableEngine:
    """Runs one variant of a bundle. The arrays of a StepResult are reused by the next step."""

    def __init__(self, bundle: Bundle, variant: str = "full", threads: int = 1) -> None:
        manifest = bundle.manifest
        self._bundle, self._manifest, self._threads = bundle, manifest, threads
        held = next(v for v in manifest.variants if v.name == variant)
        self._files, self._dropouts = held.backends[NAME].files, held.dropouts
        self._session: Any = onnx_session.session_of(bundle.read(self._files["train"]), self._files["train"], threads)
        self._binding = self._session.io_binding()
        read = {node.name for node in self._session.get_inputs()}
        given = {node.name for node in self._session.get_outputs()}
        self._ports = [(i, n) for i, n in enumerate(self._feed_names()) if n in read]
        self._tensors = [t for t in manifest.tensors if t.name in read]
        self._model: Vector | None = None
        self._evaluator: Evaluator | None = None
        self._gradient = np.zeros(manifest.parameters, dtype=np.float32)
        self._buffers = np.zeros(manifest.buffers, dtype=np.float32)
        self._loss = np.zeros(1, dtype=np.float32)
        self._metrics = np.zeros(len(manifest.metrics), dtype=np.float64)
        self._still = [t for t in manifest.tensors if t.kind == "buffer" and t.name + NEXT not in given]
        wanted = given - self._bind_outputs(given)
        if wanted or read - set(self._feed_names()) - {t.name for t in manifest.tensors}:
            raise BundleError(f"{self._files['train']}: does not fit the manifest; export the bundle again")

    @property
    def name(self) -> str:
        return NAME

    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        """One training-mode pass. model: float32[total], not changed. seed: of the dropouts' masks, not negative."""
        values = onnx_session.arrays(self._manifest, batch) + masks(self._dropouts, len(batch), seed)
        self._bind_model(model)
        for i, name in self._ports:
            value = values[i]
            self._binding.bind_input(name, "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
        try:
            self._session.run_with_iobinding(self._binding)
        except onnx_session.failures() as error:
            raise DataError(f"batch: the runtime refuses it: {onnx_session.first_line(error)}") from None
        for t in self._still:
            at = t.offset - len(self._gradient)
            self._buffers[at : at + t.size] = model[t.offset : t.offset + t.size]
        metrics: dict[str, float] = dict(zip(self._manifest.metrics, self._metrics.tolist(), strict=True))
        return StepResult(float(self._loss[0]), self._gradient, self._buffers, metrics)

    def evaluate(self, model: Vector, batch: Batch) -> Evaluation:
        """One evaluation-mode pass. model: float32[total], not changed."""
        if self._evaluator is None:
            self._evaluator = Evaluator(self._bundle, self._files["eval"], self._threads)
        return self._evaluator.evaluate(model, batch)

    def _feed_names(self) -> list[str]:
        ports = (*self._manifest.inputs, *self._manifest.targets)
        return [*(port.name for port in ports), *(dropout.name for dropout in self._dropouts)]

    def _bind_model(self, model: Vector) -> None:
        assert model.shape == (self._manifest.total,), f"{model.shape} is no model of this bundle"
        if model is self._model:
            return
        held = np.ascontiguousarray(model, dtype=np.float32)
        for t in self._tensors:
            part = held[t.offset : t.offset + t.size]
            self._binding.bind_input(t.name, "cpu", 0, np.float32, t.shape, part.ctypes.data)
        # A copy that had to be made is bound for this step alone.
        self._held, self._model = held, model if held is model else None

    def _bind_outputs(self, given: set[str]) -> set[str]:
        """Binds every output that the manifest knows of, in the graph's order; returns their names."""
        places: dict[str, tuple[Array, tuple[int, ...]]] = {"loss": (self._loss, ())}
        for i, name in enumerate(self._manifest.metrics):
            places[METRIC + name] = (self._metrics[i : i + 1], ())
        for t in self._manifest.tensors:
            if t.kind == "parameter":
                places[t.name + GRADIENT] = (self._gradient[t.offset :][: t.size], t.shape)
            elif t.kind == "buffer":
                places[t.name + NEXT] = (self._buffers[t.offset - self._manifest.parameters :][: t.size], t.shape)
        for name in (node.name for node in self._session.get_outputs()):
            if name in places:
                part, shape = places[name]
                self._binding.bind_output(name, "cpu", 0, part.dtype.type, shape, part.ctypes.data)
        return given & places.keys()


def why_not() -> str | None:
    """Why this backend cannot run here, with the remedy, or None if it can."""
    try:
        onnx_session.import_onnxruntime()
    except ConfigurationError as error:
        return str(error)
    return None
