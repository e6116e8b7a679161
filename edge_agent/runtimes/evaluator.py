"""Evaluation of any flat model on a bundle's evaluation graph, on any onnxruntime.

The graph is of standard operators and takes the model's tensors as inputs, by their manifest names, so that a model
is evaluated by handing out slices of its vector: nothing is copied and nothing is loaded again.
"""

from typing import Any

import numpy as np

from edge_agent.runtimes import onnx_session
from edge_agent.runtimes.engine import Batch, Evaluation, Vector
from protocol.bundle import Bundle
from protocol.errors import DataError
from protocol.manifest import Manifest


class Evaluator:
    """One evaluation session. `path` is the evaluation graph's path in the bundle."""

    def __init__(self, bundle: Bundle, path: str, threads: int = 1) -> None:
        self._manifest = bundle.manifest
        self._session: Any = onnx_session.session_of(bundle.read(path), path, threads)
        needed = {node.name for node in self._session.get_inputs()}
        self._ports = [(i, p.name) for i, p in enumerate(_ports(self._manifest)) if p.name in needed]
        self._tensors = [t for t in self._manifest.tensors if t.name in needed]

    def evaluate(self, model: Vector, batch: Batch) -> Evaluation:
        """Loss and metrics in evaluation mode. model: float32[total], not changed."""
        loss, *rest = self._run(model, batch)
        names = self._manifest.metrics
        metrics: dict[str, float] = {name: float(value) for name, value in zip(names, rest[: len(names)], strict=True)}
        return Evaluation(float(loss), metrics, len(batch))

    def outputs(self, model: Vector, batch: Batch) -> list[Any]:
        """The loss, then every output of the model in manifest order, as arrays."""
        loss, *rest = self._run(model, batch)
        return [loss, *rest[len(self._manifest.metrics) :]]

    def _run(self, model: Vector, batch: Batch) -> list[Any]:
        """The loss, the metrics, and the outputs."""
        assert model.shape == (self._manifest.total,), f"{model.shape} is no model of this bundle"
        values = onnx_session.arrays(self._manifest, batch)
        model = np.ascontiguousarray(model, dtype=np.float32)
        feed = {name: values[i] for i, name in self._ports}
        for t in self._tensors:
            feed[t.name] = model[t.offset : t.offset + t.size].reshape(t.shape)
        try:
            result: list[Any] = self._session.run(None, feed)
        except onnx_session.failures() as error:
            raise DataError(f"batch: the runtime refuses it: {onnx_session.first_line(error)}") from None
        return result


def _ports(manifest: Manifest) -> tuple[Any, ...]:
    return (*manifest.inputs, *manifest.targets)
