"""Binary frames made wrong inside and whole outside: lengths and checksums are put right again more often than not, so
that what is wrong is found behind them and not by them."""

import struct
import zlib
from collections.abc import Sequence
from random import Random

from benchmarks.fuzzing.bytes_mutations import INTEGERS, mutate
from edge_agent.runtimes.wire_format import BYTES, VARINT, WireError, fields
from sparse.codecs.header import HEADER_BYTES

_BODY_LENGTH = 24
_FIELDS = ((4, 1), (5, 1), (6, 1), (7, 1), (8, 4), (12, 4))


def update(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """An update's frames (sparse/codecs/header.py), one of them changed in its header or its body."""
    frames = _frames(data)
    if not frames or rng.random() < 0.1:
        return mutate(data, rng, others)
    at = rng.randrange(len(frames))
    frames[at] = _frame(frames[at], rng, [f for other in others for f in _frames(other)])
    return b"".join(frames)


def _frame(frame: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    if rng.random() < 0.1:
        return rng.choice(others or (frame,))
    head, body = bytearray(frame[:HEADER_BYTES]), frame[HEADER_BYTES:]
    if rng.random() < 0.3:
        offset, width = rng.choice(_FIELDS)
        old = int.from_bytes(head[offset : offset + width], "little")
        new = rng.choice((old + 1, old - 1, old ^ 1, rng.randrange(8), rng.choice(INTEGERS)))
        head[offset : offset + width] = (new & (1 << 8 * width) - 1).to_bytes(width, "little")
    else:
        body = mutate(body, rng, [other[HEADER_BYTES:] for other in others])
    if rng.random() < 0.95:
        struct.pack_into("<Q", head, _BODY_LENGTH, len(body))
    if rng.random() < 0.95:
        struct.pack_into("<I", head, HEADER_BYTES - 4, zlib.crc32(body, zlib.crc32(head[:-4])))
    return bytes(head) + body


def _frames(data: bytes) -> list[bytes]:
    """Cut where each says that it ends."""
    found = []
    while len(data) >= HEADER_BYTES:
        end = HEADER_BYTES + int.from_bytes(data[_BODY_LENGTH : _BODY_LENGTH + 8], "little")
        found.append(data[:end])
        data = data[end:]
    return found


# What a hostile graph would say: external data, its place, an in-memory address, a graph in an attribute, a function.
_EVIL = (
    b"\x6a\x17\x0a\x08location\x12\x0bweights.bin",
    b"\x6a\x1e\x0a\x08location\x12\x12*/_ORT_MEM_ADDR_/*",
    b"\x70\x01",
    b"\x32\x02\x0a\x00",
    b"\xca\x01\x03\x0a\x01f",
    b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\x0a\x0a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
)


def protobuf(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """A protobuf message with a field changed somewhere in it, and the lengths around it put right."""
    return mutate(data, rng, others) if rng.random() < 0.2 else _message(data, rng, 0)


def _message(data: bytes, rng: Random, depth: int) -> bytes:
    try:
        held = [
            (number, wire, bytes(v) if isinstance(v, memoryview) else v) for number, wire, v in fields(memoryview(data))
        ]
    except WireError:
        return mutate(data, rng, (data,))
    if not held:
        return rng.choice(_EVIL)
    at = rng.randrange(len(held))
    number, wire, value = held[at]
    if isinstance(value, bytes) and wire == BYTES and value and depth < 8 and rng.random() < 0.85:
        inner = _message(value, rng, depth + 1)
        held[at] = (number, wire, inner)
    else:
        match rng.randrange(6):
            case 0:
                del held[at]
            case 1:
                held.insert(at, held[at])
            case 2:
                held[at] = (rng.choice((number + 1, rng.randrange(1, 30))), wire, value)
            case 3:
                return data + rng.choice(_EVIL)
            case 4:
                held[at:at] = [held[at]] * rng.choice((10, 100))
            case _:
                held[at] = (number, wire, rng.choice(INTEGERS) if wire == VARINT else mutate(value, rng, (data,)))  # type: ignore[arg-type]
    return b"".join(_field(*one) for one in held)


def _field(number: int, wire: int, value: int | bytes) -> bytes:
    head = _varint(number << 3 | wire)
    if isinstance(value, int):
        return head + _varint(value)
    return head + (_varint(len(value)) if wire == BYTES else b"") + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def der(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """A DER structure with something changed in it, and the lengths around it put right."""
    return mutate(data, rng, others) if rng.random() < 0.3 else _der(data, rng)


def _der(data: bytes, rng: Random) -> bytes:
    held, rest = [], data
    while rest:
        one = _element(rest)
        if one is None:
            return mutate(data, rng, (data,))
        tag, value, rest = one
        held.append((tag, value))
    if not held:
        return rng.randbytes(3)
    at = rng.randrange(len(held))
    tag, value = held[at]
    if tag & 0x20 and rng.random() < 0.85:
        held[at] = (tag, _der(value, rng))
    else:
        match rng.randrange(4):
            case 0:
                del held[at]
            case 1:
                held.insert(at, held[at])
            case 2:
                held[at] = (rng.choice((tag ^ 0x20, tag + 1 & 0xFF, 0x30, 0x02, 0x05)), value)
            case _:
                held[at] = (tag, mutate(value, rng, (data,)))
    return b"".join(bytes([tag]) + _der_length(len(value)) + value for tag, value in held)


def _element(data: bytes) -> tuple[int, bytes, bytes] | None:
    """Tag and value of the first element, and what follows it."""
    if len(data) < 2:
        return None
    length, at = data[1], 2
    if length >= 0x80:
        width = length & 0x7F
        length, at = int.from_bytes(data[2 : 2 + width]), 2 + width
    return None if at + length > len(data) else (data[0], data[at : at + length], data[at + length :])


def _der_length(length: int) -> bytes:
    if length < 0x80:
        return bytes([length])
    said = length.to_bytes((length.bit_length() + 7) // 8)
    return bytes([0x80 | len(said)]) + said
