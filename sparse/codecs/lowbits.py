"""The low bits of numbers, each of a width of its own, one after the other, lowest first; padding bits are 0."""

import numpy as np
import numpy.typing as npt

from sparse.codecs.errors import PayloadError

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


def pack_low(numbers: Integers, widths: Integers) -> Bytes:
    """numbers: int64[k], not negative; widths: int64[k]. uint8[ceil(sum of widths / 8)]."""
    bits = np.zeros(int(widths.sum()), dtype=np.uint8)
    for bit, wide, at in _bits(widths):
        bits[at] = (numbers[wide] >> bit) & 1
    return np.packbits(bits, bitorder="little")


def unpack_low(data: Bytes, widths: Integers) -> Integers:
    """int64[k] of exactly the bytes that `pack_low` gives. Raises PayloadError."""
    bits = np.unpackbits(data, bitorder="little")
    if bits[int(widths.sum()) :].any():
        raise PayloadError("indices", "padding bits are set")
    numbers = np.zeros(len(widths), dtype=np.int64)
    for bit, wide, at in _bits(widths):
        numbers[wide] |= bits[at].astype(np.int64) << bit
    return numbers


def _bits(widths: Integers) -> list[tuple[int, slice | Integers, slice | Integers]]:
    """For each bit: which numbers have it, and where it stands. Strides where all widths are one, which is faster."""
    least, most = int(widths.min(initial=31)), int(widths.max(initial=0))
    if least == most:
        return [(bit, slice(None), slice(bit, len(widths) * most, most)) for bit in range(most)]
    starts = np.cumsum(widths) - widths
    wide = [np.flatnonzero(widths > bit) for bit in range(most)]
    return [(bit, places, starts[places] + bit) for bit, places in enumerate(wide)]
