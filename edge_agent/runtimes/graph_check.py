"""What a graph may be before a runtime sees it: read from its bytes, bounded, and whole in itself.

Our own reader of ONNX's ModelProto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), because devices have no
onnx, and because a runtime has read files, and memory at addresses out of the graph, before it could be asked. Every
message that can be in a model is in the tables below, and a field that is not is refused, wherever it stands. External
data, and with it the in-memory addresses of ONNX Runtime that travel as such, is refused everywhere: in initialisers,
dense and sparse, in attributes, and in the places where no graph of ours has anything at all (graphs within nodes,
functions, training information), which are refused themselves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_agent.runtimes.graph_operators import ARTIFACT_OPERATORS, STANDARD_OPERATORS
from edge_agent.runtimes.wire_format import (
    BYTES,
    FIXED32,
    FIXED64,
    NUMBER_BYTES,
    VARINT,
    WIDTHS,
    WireError,
    fields,
    packed_count,
    packed_numbers,
    signed,
)
from protocol.errors import BundleError
from protocol.manifest import MAX_DIMENSIONS, MAX_ELEMENTS

# From the first opset with LayerNormalization to the last that onnxruntime 1.17 reads.
OPSETS = range(17, 21)
IRS = range(8, 11)
# An LSTM written out over a thousand steps has some fifty thousand.
MAX_NODES = 100_000
MAX_CONSTANTS = 100_000
# About twenty for a node; a second of reading on a slow board.
MAX_FIELDS = 3_000_000
# Names of values say the path of a layer.
MAX_NAME_BYTES = 1024
MAX_TEXT_BYTES = 1 << 16
MAX_METADATA_BYTES = 1 << 20
# No sizes nest deeper: model, graph, node, attribute, sparse tensor, tensor; types of sequences are a few deep.
MAX_DEPTH = 12
_MAX_SIZE = 1 << 31

# Bytes of an element, by TensorProto.DataType: no texts, no complex numbers, none of the types of 8 bits and fewer that
# came after IR 8.
_SIZES = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 7: 8, 9: 1, 10: 2, 11: 8, 12: 4, 13: 8, 16: 2}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a graph is for, and so what may be in it. operators: by domain. declared: further domains that it may name
    without a node of theirs."""

    most_bytes: int
    operators: Mapping[bytes, frozenset[bytes]]
    declared: frozenset[bytes] = frozenset()


# Graphs that devices run hold constants, and no weights.
PORTABLE = Kind(64 << 20, {b"": STANDARD_OPERATORS})
# With weights; a protobuf message ends at 2 GiB.
INFERENCE = Kind((1 << 31) - 1, {b"": STANDARD_OPERATORS})
# The training wheel declares every domain that it knows, whatever it uses.
ARTIFACT = Kind(
    64 << 20,
    {b"": STANDARD_OPERATORS, b"com.microsoft": ARTIFACT_OPERATORS},
    frozenset(
        b"ai.onnx.ml ai.onnx.training ai.onnx.preview.training com.microsoft.experimental com.microsoft.nchwc "
        b"org.pytorch.aten com.ms.internal.nhwc".split()
    ),
)


@dataclass(slots=True)
class _Seen:
    """What was counted so far."""

    kind: Kind
    fields: int = 0
    nodes: int = 0
    constants: int = 0
    metadata: int = 0
    domains: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Field:
    """wire: how it is written; repeated numbers may be packed too. message: whose table the bytes are read by. most: of
    its bytes. refused: why there can be none."""

    wire: int
    repeated: bool = False
    message: str = ""
    most: int = 0
    metadata: bool = False
    refused: str = ""


class _Refused(ValueError):
    """What is wrong, and where."""


# Of a message: numbers and bytes by name, of what may be repeated how many there are, and of `dims` all.
Found = dict[str, Any]


def check_graph(name: str, data: bytes | memoryview, kind: Kind = PORTABLE) -> None:
    """Raises BundleError, by `name`, for a graph that is not whole in itself, or over a limit of its kind."""
    if len(data) > kind.most_bytes:
        raise BundleError(f"{name}: {len(data)} bytes are over the limit of {kind.most_bytes} for such a graph")
    try:
        _read("Model", memoryview(data).cast("B"), _Seen(kind), 0)
    except WireError as error:
        raise BundleError(f"{name}: is not an ONNX file ({error}); export the bundle again") from None
    except _Refused as error:
        raise BundleError(f"{name}: no graph that is run here: {error}; export the bundle again") from None


def _read(message: str, data: memoryview, seen: _Seen, depth: int) -> Found:
    """The fields of a message by name, checked, and the messages within it too."""
    if depth > MAX_DEPTH:
        raise _Refused(f"messages nest deeper than {MAX_DEPTH}")
    table, found = _MESSAGES[message], Found()
    for number, wire, value in fields(data):
        seen.fields += 1
        if seen.fields > MAX_FIELDS:
            raise _Refused(f"more than {MAX_FIELDS} fields")
        if number not in table:
            raise _Refused(f"field {number} of {message} is not known here")
        name, rule = table[number]
        if rule.refused:
            raise _Refused(rule.refused)
        if name in found and not rule.repeated:
            raise _Refused(f"{name} of {message} is there twice")
        if wire != rule.wire and not (wire == BYTES and rule.repeated):
            raise _Refused(f"{name} of {message} has the wire type {wire}")
        if rule.wire == BYTES:
            assert isinstance(value, memoryview)
            _bytes(name, rule, value, seen, depth)
        if name == "dims":
            found.setdefault(name, []).extend(_sizes(value))
        elif rule.repeated:
            found[name] = found.get(name, 0) + _count(rule, value)
        else:
            found[name] = value
    _CHECKS.get(message, _nothing)(found, seen)
    return found


def _bytes(name: str, rule: _Field, value: memoryview, seen: _Seen, depth: int) -> None:
    if rule.message:
        _read(rule.message, value, seen, depth + 1)
    elif rule.most and len(value) > rule.most:
        raise _Refused(f"{name} has {len(value)} bytes, over the limit of {rule.most}")
    if rule.metadata:
        seen.metadata += len(value)
        if seen.metadata > MAX_METADATA_BYTES:
            raise _Refused(f"texts beside the graph are over the limit of {MAX_METADATA_BYTES} bytes")


def _count(rule: _Field, value: int | memoryview) -> int:
    """How many values a field adds to a repeated one: one, or a packed number of them."""
    if isinstance(value, int) or rule.wire == BYTES:
        return 1
    if rule.wire == VARINT:
        return packed_count(value)
    width = WIDTHS[rule.wire]
    if len(value) % width:
        raise _Refused("packed numbers end within one")
    return len(value) // width


def _sizes(value: int | memoryview) -> list[int]:
    if isinstance(value, int):
        return [signed(value)]
    if len(value) > MAX_DIMENSIONS * NUMBER_BYTES:
        raise _Refused(f"more than {MAX_DIMENSIONS} dimensions")
    return [signed(number) for number in packed_numbers(value)]


def _nothing(found: Found, seen: _Seen) -> None:
    """Most messages are no more than their fields."""


def _model(found: Found, seen: _Seen) -> None:
    ir = signed(found.get("ir_version", 0))
    if ir not in IRS:
        raise _Refused(f"format (IR) {ir} is outside {IRS[0]} to {IRS[-1]}")
    if b"" not in seen.domains or "graph" not in found:
        raise _Refused("it holds no graph, or says no version of the standard's operators")


def _opset(found: Found, seen: _Seen) -> None:
    domain, version = _domain(found), signed(found.get("version", 0))
    if domain in seen.domains:
        raise _Refused(f"the domain {_shown(domain)} is declared twice")
    if domain not in seen.kind.operators and domain not in seen.kind.declared:
        raise _Refused(f"the domain {_shown(domain)} is none of those that run here")
    if domain == b"" and version not in OPSETS:
        raise _Refused(f"opset {version} is outside {OPSETS[0]} to {OPSETS[-1]}")
    seen.domains.add(domain)


def _node(found: Found, seen: _Seen) -> None:
    seen.nodes += 1
    if seen.nodes > MAX_NODES:
        raise _Refused(f"more than {MAX_NODES} nodes")
    domain, operator = _domain(found), _text(found, "op_type")
    if operator not in seen.kind.operators.get(domain, frozenset()):
        raise _Refused(f"the operator {_shown(operator)} of the domain {_shown(domain)} is none of those that run here")


def _tensor(found: Found, seen: _Seen) -> None:
    seen.constants += 1
    if seen.constants > MAX_CONSTANTS:
        raise _Refused(f"more than {MAX_CONSTANTS} constants")
    kind, name = signed(found.get("data_type", 0)), f"the constant {_shown(_text(found, 'name'))}"
    if kind not in _SIZES:
        raise _Refused(f"{name} has type {kind}, which no graph of ours has")
    elements = _elements(name, found)
    held = [field for field in _DATA if field in found]
    if len(held) > 1:
        raise _Refused(f"{name} has its data twice")
    given, size = 0, 1
    if held:
        raw = held[0] == "raw_data"
        given, size = (len(found["raw_data"]), _SIZES[kind]) if raw else (found[held[0]], 1)
    if given != elements * size:
        raise _Refused(f"{name} has {given / size:g} values where its sizes say {elements}")


def _sparse(found: Found, seen: _Seen) -> None:
    _elements("a sparse tensor", found)


def _dimension(found: Found, seen: _Seen) -> None:
    size = signed(found.get("dim_value", 0))
    if not 0 <= size < _MAX_SIZE:
        raise _Refused(f"a size of {size} is impossible")


def _shape(found: Found, seen: _Seen) -> None:
    if found.get("dim", 0) > MAX_DIMENSIONS:
        raise _Refused(f"{found['dim']} dimensions are over the limit of {MAX_DIMENSIONS}")


def _elements(name: str, found: Found) -> int:
    """How many values its sizes say."""
    sizes = found.get("dims", [])
    if len(sizes) > MAX_DIMENSIONS:
        raise _Refused(f"{name} has {len(sizes)} dimensions, over the limit of {MAX_DIMENSIONS}")
    if any(not 0 <= size < _MAX_SIZE for size in sizes):
        raise _Refused(f"{name} has a size outside 0 to {_MAX_SIZE - 1}")
    # Sizes beside one of 0 count too: a reader may multiply them in another order.
    if math.prod(size for size in sizes if size) > MAX_ELEMENTS:
        raise _Refused(f"{name} has more than {MAX_ELEMENTS} values")
    return math.prod(sizes)


def _text(found: Found, name: str) -> bytes:
    return bytes(found.get(name, b""))


def _domain(found: Found) -> bytes:
    domain = _text(found, "domain")
    return b"" if domain == b"ai.onnx" else domain


def _shown(text: bytes) -> str:
    return repr(text[:80].decode("ascii", "backslashreplace"))


# The fields that hold a tensor's data.
_DATA = ("raw_data", "float_data", "double_data", "int32_data", "int64_data", "uint64_data")

_EXTERNAL = "it holds external data, which is never loaded"
_NAME = _Field(BYTES, most=MAX_NAME_BYTES)
_NAMES = _Field(BYTES, repeated=True, most=MAX_NAME_BYTES)
_TEXT = _Field(BYTES, most=MAX_TEXT_BYTES, metadata=True)
_METADATA = _Field(BYTES, repeated=True, message="Entry")
_INT, _INTS = _Field(VARINT), _Field(VARINT, repeated=True)
_RAW = _Field(BYTES)
_GRAPHS = _Field(BYTES, refused="a node holds a graph within itself, which no operator that runs here has")

# Of each message, its fields by number (onnx.proto, IR 8 to 10).
_MESSAGES: Mapping[str, Mapping[int, tuple[str, _Field]]] = {
    "Model": {
        1: ("ir_version", _INT),
        2: ("producer_name", _TEXT),
        3: ("producer_version", _TEXT),
        4: ("domain", _TEXT),
        5: ("model_version", _INT),
        6: ("doc_string", _TEXT),
        7: ("graph", _Field(BYTES, message="Graph")),
        8: ("opset_import", _Field(BYTES, repeated=True, message="OperatorSet")),
        14: ("metadata_props", _METADATA),
        20: ("training_info", _Field(BYTES, refused="it holds training information of its own")),
        25: ("functions", _Field(BYTES, refused="it holds functions of its own")),
    },
    "Graph": {
        1: ("node", _Field(BYTES, repeated=True, message="Node")),
        2: ("name", _NAME),
        5: ("initializer", _Field(BYTES, repeated=True, message="Tensor")),
        10: ("doc_string", _TEXT),
        11: ("input", _Field(BYTES, repeated=True, message="ValueInfo")),
        12: ("output", _Field(BYTES, repeated=True, message="ValueInfo")),
        13: ("value_info", _Field(BYTES, repeated=True, message="ValueInfo")),
        15: ("sparse_initializer", _Field(BYTES, repeated=True, message="SparseTensor")),
        16: ("metadata_props", _METADATA),
    },
    "Node": {
        1: ("input", _NAMES),
        2: ("output", _NAMES),
        3: ("name", _NAME),
        4: ("op_type", _NAME),
        5: ("attribute", _Field(BYTES, repeated=True, message="Attribute")),
        6: ("doc_string", _TEXT),
        7: ("domain", _NAME),
        8: ("overload", _NAME),
        9: ("metadata_props", _METADATA),
    },
    "Attribute": {
        1: ("name", _NAME),
        2: ("f", _Field(FIXED32)),
        3: ("i", _INT),
        4: ("s", _Field(BYTES, most=MAX_TEXT_BYTES)),
        5: ("t", _Field(BYTES, message="Tensor")),
        6: ("g", _GRAPHS),
        7: ("floats", _Field(FIXED32, repeated=True)),
        8: ("ints", _INTS),
        9: ("strings", _Field(BYTES, repeated=True, most=MAX_TEXT_BYTES)),
        10: ("tensors", _Field(BYTES, repeated=True, message="Tensor")),
        11: ("graphs", _GRAPHS),
        13: ("doc_string", _TEXT),
        14: ("tp", _Field(BYTES, message="Type")),
        15: ("type_protos", _Field(BYTES, repeated=True, message="Type")),
        20: ("type", _INT),
        22: ("sparse_tensor", _Field(BYTES, message="SparseTensor")),
        23: ("sparse_tensors", _Field(BYTES, repeated=True, message="SparseTensor")),
    },
    "Tensor": {
        1: ("dims", _INTS),
        2: ("data_type", _INT),
        4: ("float_data", _Field(FIXED32, repeated=True)),
        5: ("int32_data", _INTS),
        7: ("int64_data", _INTS),
        8: ("name", _NAME),
        9: ("raw_data", _RAW),
        10: ("double_data", _Field(FIXED64, repeated=True)),
        11: ("uint64_data", _INTS),
        12: ("doc_string", _TEXT),
        13: ("external_data", _Field(BYTES, refused=_EXTERNAL)),
        14: ("data_location", _Field(VARINT, refused=_EXTERNAL)),
        16: ("metadata_props", _METADATA),
    },
    "SparseTensor": {
        1: ("values", _Field(BYTES, message="Tensor")),
        2: ("indices", _Field(BYTES, message="Tensor")),
        3: ("dims", _INTS),
    },
    "ValueInfo": {
        1: ("name", _NAME),
        2: ("type", _Field(BYTES, message="Type")),
        3: ("doc_string", _TEXT),
        4: ("metadata_props", _METADATA),
    },
    "Type": {
        1: ("tensor_type", _Field(BYTES, message="TensorType")),
        4: ("sequence_type", _Field(BYTES, message="SequenceType")),
        6: ("denotation", _NAME),
    },
    "TensorType": {1: ("elem_type", _INT), 2: ("shape", _Field(BYTES, message="Shape"))},
    "SequenceType": {1: ("elem_type", _Field(BYTES, message="Type"))},
    "Shape": {1: ("dim", _Field(BYTES, repeated=True, message="Dimension"))},
    "Dimension": {1: ("dim_value", _INT), 2: ("dim_param", _NAME), 3: ("denotation", _NAME)},
    "OperatorSet": {1: ("domain", _NAME), 2: ("version", _INT)},
    "Entry": {1: ("key", _TEXT), 2: ("value", _TEXT)},
}

_CHECKS = {
    "Model": _model,
    "OperatorSet": _opset,
    "Node": _node,
    "Tensor": _tensor,
    "SparseTensor": _sparse,
    "Dimension": _dimension,
    "Shape": _shape,
}
