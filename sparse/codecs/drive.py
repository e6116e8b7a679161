"""Values as one bit each after a random rotation, and one scale a block: an unbiased estimate without any state.

Vargaftik et al. 2021, DRIVE: One-bit Distributed Mean Estimation, algorithm 1 with the unbiased scale of section 4,
||x||^2 / ||R x||_1. The rotation R is a randomized Hadamard transform, their section 6: random signs from a seed, then
the fast Walsh-Hadamard transform. We rotate blocks (8,192 values) instead of the whole vector: a vector need not be
filled up to a power of two, and a block stays in the cache. The last block is filled up with zeros to a power of two.

    offset     bytes         what (integers little-endian)
    0          4             length of a block, a power of two
    4          4             seed of the signs
    8          4 * blocks    scales, float32, not negative
    ...        rest          signs of the rotated values, set where negative: of all whole blocks the first value, then
                             of all the second, and so on; then of the last block. Padding bits are 0

The receiver adds and subtracts ones, which is exact in float32, and multiplies once by the scale: every machine gets
the same bits.
"""

import struct
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from sparse.codecs.drawing import random_bits
from sparse.codecs.errors import PayloadError
from sparse.codecs.selection import Vector
from sparse.codecs.signs import read_scales

MAX_BLOCK = 1 << 20  # sums of as many ones are exact in float32
DEFAULT_BLOCK = 1 << 13
_HEAD = struct.Struct("<II")
_LARGEST = np.finfo(np.float32).max

Matrix = npt.NDArray[np.float32]
T = TypeVar("T", np.float32, np.uint8)


def encode_drive(values: Vector, block: int, seed: int) -> bytes:
    """values: float32[k], finite; block: a power of two."""
    scales, negative = [], []
    coins = random_bits(seed, len(values))
    for start, stop, length in _pieces(len(values), block):
        piece = _columns(values[start:stop], length)
        flips = _columns(coins[start:stop], length)
        exponents = np.clip(np.frexp(np.abs(piece).max(axis=0))[1], -126, 128)
        # To magnitudes of at most 1, exactly, so that no sum overflows.
        piece = piece * np.ldexp(np.float32(1), -exponents)
        square = np.square(piece, dtype=np.float64).sum(axis=0)
        rotated = _hadamard(_flipped(piece, flips))
        size = np.abs(rotated).sum(axis=0, dtype=np.float64)
        scale = np.divide(square, size, out=np.zeros_like(square), where=size > 0)
        scales.append(np.minimum(np.ldexp(scale, exponents), _LARGEST))
        negative.append(np.signbit(rotated).ravel())
    signs = np.packbits(np.concatenate(negative), bitorder="little").tobytes() if negative else b""
    return _HEAD.pack(block, seed) + b"".join(s.astype("<f4").tobytes() for s in scales) + signs


def decode_drive(data: npt.NDArray[np.uint8], k: int) -> Vector:
    """float32[k]; what would be beyond float32 is its largest value. Raises PayloadError."""
    if len(data) < _HEAD.size:
        raise PayloadError("length", "no block length and seed")
    block, seed = _HEAD.unpack_from(data.data)
    if not 1 <= block <= MAX_BLOCK or block & (block - 1):
        raise PayloadError("codec", f"blocks of {block} cannot be rotated")
    pieces, blocks, n = _pieces(k, block), -(-k // block), _padded(k, block)
    scales_end = _HEAD.size + 4 * blocks
    if len(data) != scales_end + (n + 7) // 8:
        raise PayloadError("length", f"{len(data)} bytes cannot hold {blocks} scales and {n} signs")
    scales = read_scales(data[_HEAD.size : scales_end])
    bits = np.unpackbits(data[scales_end:], bitorder="little")
    if bits[n:].any():
        raise PayloadError("values", "padding bits are set")
    coins = random_bits(seed, k)
    values = np.empty(k, dtype=np.float32)
    for start, stop, length in pieces:
        count = -(-(stop - start) // length)
        signs, bits = bits[: count * length].reshape(length, count), bits[count * length :]
        sums = _hadamard(_flipped(np.ones(signs.shape, dtype=np.float32), signs))
        factors, scales = scales[:count], scales[count:]
        with np.errstate(over="ignore"):
            sums *= factors
        piece = _flipped(sums, _columns(coins[start:stop], length))
        values[start:stop] = piece.T.ravel()[: stop - start]
        # Or a piece would be there until after the next one was made.
        del sums, piece
    return np.clip(values, -_LARGEST, _LARGEST, out=values)


def read_block(data: npt.NDArray[np.uint8]) -> int:
    """The block's length as the bytes say, unchecked; 0 where there is none."""
    return int(_HEAD.unpack_from(data.data)[0]) if len(data) >= _HEAD.size else 0


def drive_bytes(k: int, block: int) -> int:
    """Exactly what k values take."""
    return _HEAD.size + 4 * -(-k // block) + (_padded(k, block) + 7) // 8


def _pieces(k: int, block: int) -> list[tuple[int, int, int]]:
    """The whole blocks, and what is left: (from, to, length that it is rotated at)."""
    whole, rest = k // block * block, k % block
    pieces = [(0, whole, block)] if whole else []
    return [*pieces, (whole, k, _power(rest))] if rest else pieces


def _padded(k: int, block: int) -> int:
    return k // block * block + _power(k % block)


def _power(n: int) -> int:
    """The least power of two that is no less; 0 for 0."""
    return 1 << (n - 1).bit_length() if n else 0


def _columns(values: npt.NDArray[T], length: int) -> npt.NDArray[T]:
    """Each block a column, so that every step of the transform adds long rows."""
    count = -(-len(values) // length)
    if count * length != len(values):
        values = np.concatenate([values, np.zeros(count * length - len(values), dtype=values.dtype)])
    return np.ascontiguousarray(values.reshape(count, length).T)


def _flipped(values: Matrix, negative: npt.NDArray[np.uint8]) -> Matrix:
    """Changes the sign where `negative` is 1, in place."""
    signs = negative.astype(np.uint32)
    signs <<= np.uint32(31)
    values.view(np.uint32)[...] ^= signs
    return values


def _hadamard(columns: Matrix) -> Matrix:
    """The Walsh-Hadamard transform of every column, without its factor; the argument is used up."""
    length, count = columns.shape
    other, half = np.empty_like(columns), 1
    while half < length:
        pairs = columns.reshape(length // (2 * half), 2, half * count)
        out = other.reshape(pairs.shape)
        np.add(pairs[:, 0], pairs[:, 1], out=out[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=out[:, 1])
        columns, other, half = other, columns, 2 * half
    return columns
