"""What goes into a model's last linear layer, its head, read out of the graphs that a device has anyway.

The evaluation graph computes the features on its way; here it gets one more output, by a few bytes in its message, and
stays what it was otherwise. So any bundle serves, whenever it was exported, and nothing more is fetched. That weight,
bias and features are what they are taken for is seen with every batch: together they must give the graph's own scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from edge_agent.runtimes import numpy_reference, onnx_session
from edge_agent.runtimes.engine import Array, Batch, Vector
from edge_agent.runtimes.graph_check import INFERENCE, PORTABLE, check_graph
from edge_agent.runtimes.graph_writer import with_output
from edge_agent.runtimes.wire_format import fields
from protocol.bundle import Bundle
from protocol.errors import BundleError, ConfigurationError, DataError
from protocol.manifest import FULL, Manifest, Tensor

# Of the scores' largest magnitude: rounding of sums in another order.
TOLERANCE = 1e-3
_SMALLEST = 1e-3
_GRAPH, _NODE = 7, 1
_INPUT, _OUTPUT, _KIND = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model's head is: scores = features @ weight.T + bias. weight: [classes, features]; bias: [classes]."""

    weight: Tensor
    bias: Tensor

    @property
    def classes(self) -> int:
        return self.weight.shape[0]

    @property
    def features(self) -> int:
        return self.weight.shape[1]


class NoHeadError(ConfigurationError):
    """The model has no head of which another could be trained."""


class Extractor(Protocol):
    """Reads features off one variant of a bundle."""

    @property
    def place(self) -> Place:
        """Where the head is that takes the features."""

    def read(self, model: Vector, batch: Batch) -> Vector:
        """float32[examples, features] in evaluation mode. model: float32[total]. Raises DataError."""


def open_extractor(bundle: Bundle, variant: str = FULL, threads: int = 1) -> Extractor:
    """Raises NoHeadError where the model does not end in one linear layer over classes, and why."""
    manifest = bundle.manifest
    if manifest.loss != "cross_entropy" or len(manifest.targets) != 1 or len(manifest.outputs) != 1:
        raise NoHeadError(f"personal: the model learns by {manifest.loss}; a head of its own is for cross_entropy")
    for name, backend in manifest.variant(variant).backends.items():
        if "eval" in backend.files and (bundle.root / backend.files["eval"]).is_file():
            return GraphExtractor(bundle, backend.files["eval"], threads)
        if name == numpy_reference.NAME:
            return NumpyExtractor(bundle)
    raise NoHeadError("personal: no evaluation graph of the bundle is on this device")


class GraphExtractor:
    """By the evaluation graph `path` of a bundle."""

    def __init__(self, bundle: Bundle, path: str, threads: int = 1) -> None:
        self._manifest = bundle.manifest
        graph = bundle.read(path)
        check_graph(path, graph, PORTABLE)
        self.place, self._name = head_of(path, graph, bundle.manifest)
        self._session: Any = onnx_session.session_of(with_output(graph, self._name), path, threads)
        self._needed = {node.name for node in self._session.get_inputs()}

    def read(self, model: Vector, batch: Batch) -> Vector:
        """See `Extractor.read`."""
        manifest = self._manifest
        values = onnx_session.arrays(manifest, batch)
        feed = {p.name: v for p, v in zip((*manifest.inputs, *manifest.targets), values, strict=True)}
        feed |= {t.name: model[t.offset : t.offset + t.size].reshape(t.shape) for t in manifest.tensors}
        wanted = [self._name, manifest.outputs[0].name]
        found = _run(self._session, wanted, {name: v for name, v in feed.items() if name in self._needed})
        return _checked(self.place, model, *found)


class NumpyExtractor:
    """Of the tiny models that run in NumPy alone."""

    def __init__(self, bundle: Bundle) -> None:
        self._manifest = bundle.manifest
        weight, bias = bundle.manifest.tensors[-2:]
        self.place = Place(weight, bias)

    def read(self, model: Vector, batch: Batch) -> Vector:
        """See `Extractor.read`."""
        scores, hidden = numpy_reference.forward(self._manifest, model, batch.inputs[0])
        return _checked(self.place, model, hidden.astype(np.float32), scores)


class DeployedModel:
    """A deployed model's file, of the same network: features of inputs alone. graph: its bytes."""

    def __init__(self, name: str, graph: bytes, manifest: Manifest, threads: int = 1) -> None:
        check_graph(name, graph, INFERENCE)
        self.place, self._name = head_of(name, graph, manifest)
        self._inputs = manifest.inputs
        self._session: Any = onnx_session.session_of(with_output(graph, self._name), name, threads, INFERENCE)

    def read(self, inputs: Mapping[str, Array]) -> Vector:
        """float32[examples, features] of inputs by their manifest names. Raises DataError."""
        given = {node.name for node in self._session.get_inputs()}
        feed = {p.name: np.ascontiguousarray(inputs[p.name], p.dtype) for p in self._inputs if p.name in given}
        return np.asarray(_run(self._session, [self._name], feed)[0], np.float32)


def head_of(name: str, graph: bytes, manifest: Manifest) -> tuple[Place, str]:
    """Where the head is, and what the graph calls its features. graph: checked before. Raises NoHeadError."""
    output, tensors = manifest.outputs[0].name, {t.name: t for t in manifest.tensors}
    for kind, inputs, outputs in _nodes(graph):
        if output not in outputs:
            continue
        held = [tensors.get(one) for one in inputs[1:3]]
        if kind == "Gemm" and len(held) == 2 and held[0] is not None and held[1] is not None:
            place = Place(held[0], held[1])
            if len(place.weight.shape) == 2 and place.bias.shape == (place.classes,):
                return place, inputs[0]
        raise NoHeadError(
            f"personal: {name}: the scores come from {kind} and not from a linear layer with weight and bias over one "
            "vector of features; end the model in torch.nn.Linear, or set personal.enabled = false"
        )
    raise NoHeadError(f"personal: {name}: no node gives {output}")


def _nodes(graph: bytes) -> list[tuple[str, list[str], list[str]]]:
    """Of each node what it is, what it reads and what it gives."""
    found = []
    for number, _, body in fields(memoryview(graph)):
        if number != _GRAPH or isinstance(body, int):
            continue
        for inner, _, node in fields(body):
            if inner == _NODE and not isinstance(node, int):
                found.append(_node(node))
    return found


def _node(data: memoryview) -> tuple[str, list[str], list[str]]:
    said: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _KIND: [""]}
    for number, _, value in fields(data):
        if number in said and not isinstance(value, int):
            said[number].append(bytes(value).decode(errors="replace"))
    return said[_KIND][-1], said[_INPUT], said[_OUTPUT]


def _run(session: Any, wanted: list[str], feed: Mapping[str, Array]) -> list[Any]:
    try:
        found: list[Any] = session.run(wanted, dict(feed))
    except onnx_session.failures() as error:
        raise DataError(f"batch: the runtime refuses it: {onnx_session.first_line(error)}") from None
    return found


def _checked(place: Place, model: Vector, features: Vector, scores: Array) -> Vector:
    """The features. Raises BundleError where the head does not make the model's scores of them."""
    weight, bias = (model[t.offset : t.offset + t.size].reshape(t.shape) for t in (place.weight, place.bias))
    if features.shape != (len(scores), place.features):
        raise BundleError(f"personal: features of {features.shape} where {place.weight.name} takes {place.features}")
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.abs(features @ weight.T + bias - scores).max()
    if not off <= TOLERANCE * max(_SMALLEST, np.abs(scores).max()):
        raise BundleError(f"personal: {place.weight.name} does not make the model's scores of its features: off {off}")
    return features
