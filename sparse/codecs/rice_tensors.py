"""Index sets as Rice-coded gaps with a width for each tensor, for layers that are thinned out differently.

    bytes            what
    counts           of indices in each tensor (counts.py)
    tensors          b of each tensor in which there is an index: the remainder's width in bits, 0 to 30
    ceil(u / 8)      per gap: quotient many 0 bits, then a 1
    ceil(r / 8)      per gap: the remainder, b bits of its tensor, lowest first

Gaps are counted within a tensor (counts.py), otherwise it is rice.py.
"""

import numpy as np
import numpy.typing as npt

from sparse.codecs.counts import decode_counts, encode_counts, gaps_of, indices_of, max_count_bytes
from sparse.codecs.errors import PayloadError
from sparse.codecs.lowbits import pack_low, unpack_low
from sparse.codecs.rice import MAX_WIDTH, best_width, max_rice_size
from sparse.codecs.selection import Indices
from sparse.codecs.tensors import Offsets


def encode_rice_tensors(indices: Indices, offsets: Offsets) -> bytes:
    """indices: int64[k], ascending."""
    counts = np.diff(np.searchsorted(indices, offsets))
    gaps = gaps_of(indices, counts, offsets)
    used = counts[counts > 0]
    starts = np.cumsum(used) - used
    widths = np.array([best_width(gaps[a : a + n]) for a, n in zip(starts, used, strict=True)], dtype=np.int64)
    each = np.repeat(widths, used)
    ends = np.cumsum((gaps >> each) + 1) - 1
    unary = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, dtype=np.uint8)
    unary[ends] = 1
    parts = (widths.astype(np.uint8), np.packbits(unary, bitorder="little"), pack_low(gaps, each))
    return encode_counts(counts) + b"".join(part.tobytes() for part in parts)


def decode_rice_tensors(data: npt.NDArray[np.uint8], k: int, offsets: Offsets) -> Indices:
    """int64[k], ascending. Raises PayloadError."""
    counts, taken = decode_counts(data, k, offsets)
    used = counts[counts > 0]
    widths = data[taken : taken + len(used)].astype(np.int64)
    if len(widths) != len(used) or widths.max(initial=0) > MAX_WIDTH:
        raise PayloadError("indices", "a remainder width is missing or impossible")
    streams, each = data[taken + len(used) :], np.repeat(widths, used)
    total = int(each.sum())
    split = len(streams) - (total + 7) // 8
    # Bounds what is unpacked, as in rice.py.
    longest = k + int(((np.diff(offsets) - counts)[counts > 0] >> widths).sum())
    if not 0 <= split <= (longest + 7) // 8:
        raise PayloadError("length", f"{len(data)} bytes cannot code {k} indices with {total} bits of remainders")
    ends = np.flatnonzero(np.unpackbits(streams[:split], bitorder="little"))
    if len(ends) != k or ((int(ends[-1]) + 8) // 8 if k else 0) != split:
        raise PayloadError("indices", f"the quotients of {len(ends)} indices where {k} were declared")
    gaps = ((np.diff(ends, prepend=-1) - 1) << each) + unpack_low(streams[split:], each)
    return indices_of(gaps, counts, offsets)


def max_rice_tensors_size(k: int, offsets: Offsets) -> int:
    """No k indices take more: with the one width that is best for all of them no tensor does worse."""
    tensors = len(offsets) - 1
    return max_count_bytes(k, tensors) + min(k, tensors) + max_rice_size(k, int(offsets[-1]))
