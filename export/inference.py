"""The deployable graph and where each tensor's bytes lie in it."""

from collections.abc import Iterator

import onnx

from protocol.errors import BundleError
from protocol.manifest import Tensor

# Field numbers of onnx.proto.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_NAME, _TENSOR_RAW_DATA = 7, 5, 8, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def places_of(graph: bytes, tensors: tuple[Tensor, ...]) -> dict[str, int]:
    """Byte offsets of the raw data of those of the manifest's tensors that the graph holds, each verified.

    protocol.bundle.deploy writes a trained model through them.
    """
    found = dict(_raw_data(graph))
    places = {}
    held = {i.name: i for i in onnx.load_from_string(graph).graph.initializer}
    for tensor in tensors:
        if tensor.name not in held:
            continue
        begin, size = found[tensor.name]
        if size != 4 * tensor.size or graph[begin : begin + size] != held[tensor.name].raw_data:
            raise BundleError(f"{tensor.name}: its bytes were not found in the inference graph; report this")
        places[tensor.name] = begin
    missing = [t.name for t in tensors if t.kind == "parameter" and t.name not in places]
    if missing:
        raise BundleError(
            f"{missing[0]}: trains but takes no part in evaluation; a trained value could not be deployed. Use it in "
            "evaluation mode too, or set requires_grad=False on it"
        )
    return places


def _raw_data(graph: bytes) -> Iterator[tuple[str, tuple[int, int]]]:
    """Name, and place and size of the raw data, of every initialiser."""
    for number, begin, end in _fields(graph, 0, len(graph)):
        if number != _MODEL_GRAPH:
            continue
        for inner, first, last in _fields(graph, begin, end):
            if inner != _GRAPH_INITIALIZER:
                continue
            parts = {n: (b, e) for n, b, e in _fields(graph, first, last)}
            if _TENSOR_NAME in parts and _TENSOR_RAW_DATA in parts:
                name = slice(*parts[_TENSOR_NAME])
                start, stop = parts[_TENSOR_RAW_DATA]
                yield graph[name].decode(), (start, stop - start)


def _fields(data: bytes, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of one protobuf message: number, and where the value begins and ends."""
    while position < end:
        key, position = _varint(data, position)
        kind, begin = key & 7, position
        if kind == _VARINT:
            _, position = _varint(data, position)
        elif kind == _BYTES:
            length, begin = _varint(data, position)
            position = begin + length
        else:
            assert kind in (_FIXED64, _FIXED32), f"wire type {kind} in a graph that protobuf wrote"
            position += 8 if kind == _FIXED64 else 4
        yield key >> 3, begin, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
        shift += 7
