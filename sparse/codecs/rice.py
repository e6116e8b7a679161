"""Index sets as Rice-coded gaps: the quotients of all gaps in unary, then their remainders of b bits each.

    offset  bytes            what
    0       1                b, the remainder's width in bits, 0 to 30
    1       ceil(u / 8)      per gap: quotient many 0 bits, then a 1 (u = k + the sum of quotients)
            ceil(k * b / 8)  per gap: the remainder, b bits, lowest first

A gap is the number of places skipped: g[0] = i[0], g[j] = i[j] - i[j-1] - 1; quotient g >> b, remainder the b low
bits. Bits fill bytes from the lowest; padding bits are 0. Splitting quotients from remainders, where Rice (1971)
interleaves them, costs nothing but padding and lets both be coded as whole arrays.
"""

import numpy as np
import numpy.typing as npt

from sparse.codecs.errors import PayloadError
from sparse.codecs.selection import Indices

Bytes = npt.NDArray[np.uint8]

MAX_WIDTH = 30


def encode_rice(indices: Indices) -> bytes:
    """indices: int64[k], ascending, from 0. The width b is the one that needs the fewest bits."""
    gaps = np.diff(indices, prepend=-1) - 1
    width = best_width(gaps)
    ends = np.cumsum((gaps >> width) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, dtype=np.uint8)
    unary[ends] = 1
    remainders = np.empty((len(gaps), width), dtype=np.uint8)
    for bit in range(width):
        remainders[:, bit] = (gaps >> bit) & 1
    return bytes([width]) + _pack(unary) + _pack(remainders.ravel())


def max_rice_size(k: int, d: int) -> int:
    """No k indices below d take more bytes than this: gaps sum to at most d - k, and both halves are padded."""
    bits = min(k * (width + 1) + ((d - k) >> width) for width in range(MAX_WIDTH + 1))
    return 1 + (bits + 14) // 8 if k > 0 else 1


def decode_rice(data: Bytes, k: int, d: int) -> Indices:
    """The k indices below d that `data` codes: int64[k], ascending. Raises PayloadError."""
    width = int(data[0]) if len(data) else MAX_WIDTH + 1
    if width > MAX_WIDTH:
        raise PayloadError("indices", "no remainder width, or an impossible one")
    split = len(data) - (k * width + 7) // 8
    # Bounds what the next line unpacks: the quotients of a set that fits cannot be longer.
    if not 1 <= split <= 1 + (k + ((d - k) >> width) + 7) // 8:
        raise PayloadError("length", f"{len(data)} bytes cannot code {k} of {d} indices with remainders of {width}")
    ends = np.flatnonzero(np.unpackbits(data[1:split], bitorder="little"))
    used = int(ends[-1]) + 1 if len(ends) else 0
    if len(ends) != k or (used + 7) // 8 != split - 1:
        raise PayloadError("indices", f"the quotients of {len(ends)} indices where {k} were declared")
    gaps = (np.diff(ends, prepend=-1) - 1) << width
    gaps += _unpack_remainders(data[split:], k, width)
    indices = np.cumsum(gaps + 1) - 1
    if k > 0 and indices[-1] >= d:
        raise PayloadError("indices", f"index {indices[-1]} is beyond the {d} values of the vector")
    return indices


def best_width(gaps: Indices) -> int:
    # The total k * (b + 1) + sum(gaps >> b) is convex in b: one more remainder bit costs k bits and saves
    # sum((q + 1) >> 1) of quotients, which only falls as b grows. So the first rise is the end.
    quotients, width = gaps, 0
    while width < MAX_WIDTH and int(((quotients + 1) >> 1).sum()) > len(gaps):
        quotients, width = quotients >> 1, width + 1
    return width


def _unpack_remainders(data: Bytes, k: int, width: int) -> Indices:
    bits = np.unpackbits(data, bitorder="little")
    if bits[k * width :].any():
        raise PayloadError("indices", "padding bits are set")
    table = bits[: k * width].reshape(k, width)
    remainders = np.zeros(k, dtype=np.int64)
    for bit in range(width):
        remainders |= table[:, bit].astype(np.int64) << bit
    return remainders


def _pack(bits: Bytes) -> bytes:
    return np.packbits(bits, bitorder="little").tobytes()
