"""Protobuf's wire format, read field by field without a copy: keys, numbers and slices of the message at hand.

https://protobuf.dev/programming-guides/encoding/. Stricter than protobuf's own readers, which differ in what they make
of overlong numbers: what one of them could take for another field, or another value, is refused.
"""

from collections.abc import Iterator

import numpy as np

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# Of a key: field numbers below 2048, which is all that ONNX has.
_KEY_BYTES = 2
# Of a length: what protobuf's C++ reads, 32 bits.
_LENGTH_BYTES = 5
NUMBER_BYTES = 10
WIDTHS = {FIXED64: 8, FIXED32: 4}


class WireError(ValueError):
    """The bytes are no protobuf message as its own writers make them."""


def fields(data: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Field number, wire type and value of each field: an int of a VARINT, 0 to 2**64 - 1, else its bytes.

    Raises WireError.
    """
    at, end = 0, len(data)
    while at < end:
        key = data[at]
        at += 1
        if key > 0x7F:
            key, at = _varint(data, at - 1, end, _KEY_BYTES)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise WireError("a field has number 0")
        if wire == BYTES:
            length, at = _varint(data, at, end, _LENGTH_BYTES)
            if length > end - at:
                raise WireError(f"field {number} has {length} bytes where {end - at} are left")
            yield number, wire, data[at : at + length]
            at += length
        elif wire == VARINT:
            value, at = _varint(data, at, end, NUMBER_BYTES)
            yield number, wire, value
        elif wire in WIDTHS:
            width = WIDTHS[wire]
            if width > end - at:
                raise WireError(f"field {number} ends early")
            yield number, wire, data[at : at + width]
            at += width
        else:
            raise WireError(f"field {number} has the wire type {wire}, which no writer of today uses")


def packed_numbers(data: memoryview) -> list[int]:
    """The numbers of a packed field of varints. Raises WireError."""
    found, at, end = [], 0, len(data)
    while at < end:
        value, at = _varint(data, at, end, NUMBER_BYTES)
        found.append(value)
    return found


def packed_count(data: memoryview) -> int:
    """How many varints a packed field holds, without reading any. Raises WireError where the last one is cut off."""
    if not len(data):
        return 0
    if data[-1] > 0x7F:
        raise WireError("a number ends early")
    return int(np.count_nonzero(np.frombuffer(data, dtype=np.uint8) < 0x80))


def signed(value: int) -> int:
    """A varint as int64 has it."""
    return value - (1 << 64) if value >> 63 else value


def _varint(data: memoryview, at: int, end: int, most: int) -> tuple[int, int]:
    """The number that begins at `at`, and where the next thing begins."""
    value = 0
    for i in range(min(most, end - at)):
        byte = data[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            if (byte == 0 and i > 0) or value >> 64:
                raise WireError("a number is longer than it has to be")
            return value, at + i + 1
    raise WireError("a number ends early" if end - at < most else f"a number has more than {most} bytes")
