"""ONNX graphs written byte by byte, for machines without the onnx package: small ones that calibration runs, and any
with one more output.

A graph is one protobuf message (onnx.proto, https://github.com/onnx/onnx/blob/main/onnx/onnx.proto); the numbers below
are its fields. Tests read what is written with the onnx package.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_agent.runtimes.engine import Array
from edge_agent.runtimes.wire_format import BYTES, VARINT, WIDTHS, fields

# As the exporter's graphs have them.
OPSET, IR = 18, 8
_TYPES = {np.dtype(np.float32): 1, np.dtype(np.int64): 7, np.dtype(np.bool_): 9}
_GRAPH, _OUTPUT, _FLOAT = 7, 12, 1

Attribute = int | Sequence[int]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator: its kind, and the names of what it reads and writes."""

    kind: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Named:
    """An input or output of the graph."""

    name: str
    shape: Sequence[int]
    dtype: np.dtype[np.generic]


def write_graph(
    nodes: Sequence[Node], inputs: Sequence[Named], outputs: Sequence[Named], constants: Mapping[str, Array]
) -> bytes:
    """The bytes of a model of these nodes, in an order in which they can run."""
    body = b"".join(_bytes(1, _node(i, node)) for i, node in enumerate(nodes)) + _bytes(2, b"probe")
    body += b"".join(_bytes(5, _tensor(name, value)) for name, value in constants.items())
    body += b"".join(_bytes(11, _named(one)) for one in inputs) + b"".join(_bytes(12, _named(one)) for one in outputs)
    return _number(1, IR) + _bytes(7, body) + _bytes(8, _number(2, OPSET))


def with_output(model: bytes, name: str) -> bytes:
    """A checked model's bytes that gives one of its inner float values too, whatever its shape."""
    out = b""
    for number, wire, value in fields(memoryview(model)):
        if isinstance(value, int):
            out += _number(number, value)
        elif wire in WIDTHS:
            out += _key(number, wire) + bytes(value)
        else:
            more = _output(name) if number == _GRAPH else b""
            out += _bytes(number, bytes(value) + more)
    return out


def _output(name: str) -> bytes:
    return _bytes(_OUTPUT, _bytes(1, name.encode()) + _bytes(2, _bytes(1, _number(1, _FLOAT))))


def _node(place: int, node: Node) -> bytes:
    said = b"".join(_bytes(1, name.encode()) for name in node.inputs)
    said += b"".join(_bytes(2, name.encode()) for name in node.outputs)
    said += _bytes(3, f"{node.kind}_{place}".encode()) + _bytes(4, node.kind.encode())
    return said + b"".join(_bytes(5, _attribute(name, value)) for name, value in node.attributes.items())


def _attribute(name: str, value: Attribute) -> bytes:
    said = _bytes(1, name.encode())
    if isinstance(value, int):
        return said + _number(3, value) + _number(20, 2)
    return said + b"".join(_number(8, one) for one in value) + _number(20, 7)


def _tensor(name: str, value: Array) -> bytes:
    said = b"".join(_number(1, size) for size in value.shape) + _number(2, _TYPES[value.dtype])
    return said + _bytes(8, name.encode()) + _bytes(9, np.ascontiguousarray(value).tobytes())


def _named(one: Named) -> bytes:
    shape = b"".join(_bytes(1, _number(1, size)) for size in one.shape)
    return _bytes(1, one.name.encode()) + _bytes(2, _bytes(1, _number(1, _TYPES[one.dtype]) + _bytes(2, shape)))


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _number(number: int, value: int) -> bytes:
    return _key(number, VARINT) + _varint(value & (1 << 64) - 1)


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, BYTES) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
