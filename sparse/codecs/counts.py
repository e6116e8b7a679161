"""How many indices fall into each tensor, in bytes, and the gaps within tensors.

Counts of all tensors but the last, whose count is what is left, as LEB128: seven bits a byte, lowest first, the top bit
set where another byte follows. None stand there for a single tensor.
"""

import numpy as np
import numpy.typing as npt

from sparse.codecs.errors import PayloadError
from sparse.codecs.selection import Indices
from sparse.codecs.tensors import Offsets

_MAX_COUNT_BYTES = 5


def encode_counts(counts: Indices) -> bytes:
    """counts: int64[tensors]."""
    out = bytearray()
    for count in counts[:-1].tolist():
        while count > 0x7F:
            out.append(count & 0x7F | 0x80)
            count >>= 7
        out.append(count)
    return bytes(out)


def decode_counts(data: npt.NDArray[np.uint8], k: int, offsets: Offsets) -> tuple[Indices, int]:
    """The k indices' counts in each tensor, and how many bytes said so. Raises PayloadError."""
    sizes = np.diff(offsets)
    counts, head, at = np.zeros(len(sizes), dtype=np.int64), data[: _MAX_COUNT_BYTES * len(sizes)].tobytes(), 0
    for tensor in range(len(sizes) - 1):
        count = shift = 0
        while True:
            if at >= len(head) or shift >= 7 * _MAX_COUNT_BYTES:
                raise PayloadError("indices", f"the counts of {len(sizes)} tensors end early")
            count |= (head[at] & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if head[at - 1] < 0x80:
                break
        counts[tensor] = count
    if len(sizes):
        counts[-1] = k - int(counts.sum())
    if (counts > sizes).any() or counts.min(initial=0) < 0 or int(counts.sum()) != k:
        raise PayloadError("indices", f"counts that do not make {k} indices of these tensors")
    return counts, at


def max_count_bytes(k: int, tensors: int) -> int:
    """No counts of k indices take more."""
    return max(tensors - 1, 0) * max(1, -(-k.bit_length() // 7))


def gaps_of(indices: Indices, counts: Indices, offsets: Offsets) -> Indices:
    """Of each index: how many places are skipped since the one before it in its tensor, or since the tensor began."""
    gaps = np.diff(indices, prepend=-1) - 1
    used = counts > 0
    first = (np.cumsum(counts) - counts)[used]
    gaps[first] = indices[first] - offsets[:-1][used]
    return gaps


def indices_of(gaps: Indices, counts: Indices, offsets: Offsets) -> Indices:
    """The indices of gaps that stay within their tensors. Raises PayloadError for others."""
    ends = np.cumsum(gaps + 1)
    used = counts > 0
    last = np.cumsum(counts)[used] - 1
    before = np.concatenate([np.zeros(1, dtype=np.int64), ends[last][:-1]]) if len(last) else last
    indices = ends + np.repeat(offsets[:-1][used] - before - 1, counts[used])
    if (indices[last] >= offsets[1:][used]).any():
        raise PayloadError("indices", "an index is beyond its tensor")
    return indices
