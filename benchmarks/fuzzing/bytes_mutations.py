"""Bytes made wrong without knowing what they mean: flips, cuts, splices, interesting integers."""

from collections.abc import Callable, Sequence
from random import Random

Mutation = Callable[[bytes, Random, Sequence[bytes]], bytes]

# No mutated input grows beyond this, so that a run is of many inputs.
MOST_BYTES = 1 << 18
_SMALL = (0, 1, 2, 7, 8, 15, 16, 23, 24, 27, 31, 32, 63, 64, 127, 128, 255, 256, 1023, 1024, 4095, 4096)
_POWERS = (1 << 15, 1 << 16, 1 << 24, 1 << 30, 1 << 31, 1 << 32, 1 << 53, 1 << 63)
INTEGERS = (*_SMALL, *_POWERS, *(power - 1 for power in _POWERS), (1 << 62) - 1, (1 << 64) - 1)


def mutate(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    """One to four changes; others: what a part may be taken from."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        data = rng.choice(_CHANGES)(data, rng, others)[:MOST_BYTES]
    return data


def _flip(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    if not data:
        return b"\x00"
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _set(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    if not data:
        return b"\xff"
    changed = bytearray(data)
    changed[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
    return bytes(changed)


def _cut(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _remove(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    begin, end = _slice(data, rng)
    return data[:begin] + data[end:]


def _repeat(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    begin, end = _slice(data, rng)
    return data[:begin] + data[begin:end] * rng.choice((2, 3, 10, 100)) + data[end:]


def _insert(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 4, 8, 64))) + data[at:]


def _integer(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    value = rng.choice(INTEGERS) & (1 << 8 * width) - 1
    at = rng.randrange(max(1, len(data) - width + 1))
    return data[:at] + value.to_bytes(width, rng.choice(("little", "big"))) + data[at + width :]


def _fill(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    begin, end = _slice(data, rng)
    return data[:begin] + bytes([rng.choice((0, 0x80, 0xFF))]) * (end - begin) + data[end:]


def _splice(data: bytes, rng: Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    begin, end = _slice(other, rng)
    at = rng.randrange(len(data) + 1)
    return data[:at] + other[begin:end] + data[at + rng.choice((0, end - begin)) :]


def _slice(data: bytes, rng: Random) -> tuple[int, int]:
    """Short more often than long."""
    begin = rng.randrange(len(data) + 1)
    length = rng.choice((1, 2, 4, 8, 16, rng.randrange(len(data) + 1)))
    return begin, min(len(data), begin + length)


_CHANGES: tuple[Mutation, ...] = (_flip, _set, _cut, _remove, _repeat, _insert, _integer, _integer, _fill, _splice)
