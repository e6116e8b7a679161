"""ONNX models written field by field, right and wrong: what graph checks are tried on."""

from collections.abc import Sequence

Message = bytes


def number(field: int, value: int) -> Message:
    return _varint(field << 3) + _varint(value & (1 << 64) - 1)


def blob(field: int, value: bytes) -> Message:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def model(graph: Message, more: Message = b"", *, opset: int = 18, ir: int = 8) -> Message:
    """graph: what is in it beside a name."""
    return number(1, ir) + blob(8, number(2, opset)) + more + blob(7, blob(2, b"main") + graph)


def node(more: Message = b"", operator: bytes = b"Identity", domain: bytes = b"") -> Message:
    return blob(1, blob(1, b"x") + blob(2, b"y") + blob(4, operator) + blob(7, domain) + more)


def tensor(name: bytes, sizes: Sequence[int], kind: int = 1) -> Message:
    """Without its data."""
    return b"".join(number(1, size) for size in sizes) + number(2, kind) + blob(8, name)


def values(name: bytes, sizes: Sequence[int]) -> Message:
    """float32, zero."""
    count = 1
    for size in sizes:
        count *= size
    return tensor(name, sizes) + blob(9, bytes(4 * count))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
