"""Index sets as a bitmap: bit i of the little-endian bit string is set where i is in the set."""

import numpy as np
import numpy.typing as npt

from sparse.codecs.errors import PayloadError
from sparse.codecs.selection import Indices


def bitmap_size(d: int) -> int:
    """The bytes of every bitmap over d places."""
    return (d + 7) // 8


def encode_bitmap(indices: Indices, d: int) -> bytes:
    """indices: int64[k], ascending, below d."""
    bits = np.zeros(d, dtype=np.uint8)
    bits[indices] = 1
    return np.packbits(bits, bitorder="little").tobytes()


def decode_bitmap(data: npt.NDArray[np.uint8], k: int, d: int) -> Indices:
    """The k indices of a bitmap over d places: int64[k], ascending. Raises PayloadError."""
    if len(data) != bitmap_size(d):
        raise PayloadError("length", f"{len(data)} bytes of bitmap where {d} values need {bitmap_size(d)}")
    indices = np.flatnonzero(np.unpackbits(data, bitorder="little"))
    if len(indices) != k or (k > 0 and indices[-1] >= d):
        raise PayloadError("indices", f"{len(indices)} bits are set, not {k} below {d}")
    return indices
