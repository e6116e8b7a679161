"""Index sets by rANS, within a percent of log2 of the number of such sets, whatever their density.

Where fewer than a quarter of the places are kept, gaps are coded: the quotient gap >> b, at most 63, by rANS, as if
indices fell independently with the tensor's density (then gaps are geometric), and the b low bits as they are. Where
more are kept, the bytes of a bitmap are coded, as if its bits fell independently. The densities follow from counts that
both sides have, so no table travels.

    bytes            what (integers little-endian)
    counts           of indices in each tensor (counts.py); none where the coding knows of a single tensor
    ceil(r / 8) - s  gaps only: low bits of each gap, lowest first, without the first s bytes
    rans             quotients, or bytes of the bitmap (rans.py); the lanes begin with the s bytes above
    4 * e            gaps only: of each quotient of 63 or more, what it is above 63

The number of lanes follows from k, d and b, so a decoder's steps are bounded by what it expects.
"""

import numpy as np
import numpy.typing as npt

from sparse.codecs.counts import decode_counts, encode_counts, gaps_of, indices_of, max_count_bytes
from sparse.codecs.errors import PayloadError
from sparse.codecs.lowbits import pack_low, unpack_low
from sparse.codecs.rans import BITS, TOTAL, Model, decode_symbols, encode_symbols
from sparse.codecs.selection import Indices
from sparse.codecs.tensors import Offsets

Bytes = npt.NDArray[np.uint8]

_ESCAPE = 63
_MAX_STEPS = 1 << 10
# A lane costs 8.5 bits where it begins with other bits, 25 where not.
_BITS_A_LANE, _BYTES_A_LANE = 1000, 320


def encode_entropy(indices: Indices, offsets: Offsets) -> bytes:
    """indices: int64[k], ascending; offsets: of the tensors whose densities are told apart."""
    k, d = len(indices), int(offsets[-1])
    counts = np.diff(np.searchsorted(indices, offsets))
    head = encode_counts(counts)
    if _dense(k, d):
        bits = np.zeros(d, dtype=np.uint8)
        bits[indices] = 1
        model, contexts = _byte_model(counts, offsets)
        spare = np.zeros(_byte_lanes(d), dtype=np.uint16)
        return head + encode_symbols(np.packbits(bits, bitorder="little"), model, spare, contexts)
    gaps = gaps_of(indices, counts, offsets)
    model, contexts, widths = _gap_model(counts, offsets)
    each = np.repeat(widths, counts)
    low = pack_low(gaps, each)
    lanes = _gap_lanes(k, int(each.sum()))
    spare = np.zeros(2 * lanes, dtype=np.uint8)
    shared = min(len(low), len(spare))
    spare[:shared] = low[:shared]
    quotients = gaps >> each
    stream = encode_symbols(np.minimum(quotients, _ESCAPE).astype(np.uint8), model, spare.view("<u2"), contexts)
    beyond = (quotients[quotients >= _ESCAPE] - _ESCAPE).astype("<u4")
    return head + low[shared:].tobytes() + stream + beyond.tobytes()


def decode_entropy(data: Bytes, k: int, offsets: Offsets) -> Indices:
    """int64[k], ascending. Raises PayloadError."""
    d = int(offsets[-1])
    counts, taken = decode_counts(data, k, offsets)
    data = data[taken:]
    return (_decode_bytes if _dense(k, d) else _decode_gaps)(data, k, counts, offsets)


def max_entropy_size(k: int, offsets: Offsets) -> int:
    """No k indices take more."""
    d, tensors = int(offsets[-1]), len(offsets) - 1
    head = max_count_bytes(k, tensors)
    if k == 0:
        return head
    # No symbol costs more than the 14 bits of a frequency of 1, and a lane keeps less than four bytes back.
    if _dense(k, d):
        return head + 4 * _byte_lanes(d) + 2 * (-(-(d + 7) // 8 * BITS // 16) + 1)
    widest = _width(_octave(d, 1)) if tensors > 1 else _width(_octave(d, k))
    lanes = _gap_lanes(k, k * widest)
    escapes = min(k, d // (_ESCAPE << 1) if tensors > 1 else d // (_ESCAPE << widest))
    return head + (k * widest + 7) // 8 + 4 * lanes + 2 * (-(-k * BITS // 16) + 1) + 4 * escapes


def estimated_bits(counts: Indices, offsets: Offsets) -> float:
    """About what `encode_entropy` takes, for choosing: log2 of the number of sets with these counts, and the counts."""
    sizes = np.diff(offsets).astype(np.float64)
    share = np.clip(counts / np.maximum(sizes, 1), 1e-12, 1 - 1e-12)
    each = -share * np.log2(share) - (1 - share) * np.log2(1 - share)
    return float((sizes * each).sum()) + 8 * len(encode_counts(counts))


def _decode_bytes(data: Bytes, k: int, counts: Indices, offsets: Offsets) -> Indices:
    d = int(offsets[-1])
    model, contexts = _byte_model(counts, offsets)
    packed, spare, used = decode_symbols(data, (d + 7) // 8, model, _byte_lanes(d), contexts)
    if used != len(data) or spare.any():
        raise PayloadError("length", f"{len(data)} bytes where the entropy code has {used}")
    indices = np.flatnonzero(np.unpackbits(packed, bitorder="little"))
    if (
        len(indices) != k
        or (k > 0 and indices[-1] >= d)
        or (np.diff(np.searchsorted(indices, offsets)) != counts).any()
    ):
        raise PayloadError("indices", f"{len(indices)} bits are set, not {k} below {d}, or not where the counts say")
    return indices


def _decode_gaps(data: Bytes, k: int, counts: Indices, offsets: Offsets) -> Indices:
    model, contexts, widths = _gap_model(counts, offsets)
    each = np.repeat(widths, counts)
    raw = int(each.sum())
    lanes = _gap_lanes(k, raw)
    shared = min((raw + 7) // 8, 2 * lanes)
    split = (raw + 7) // 8 - shared
    if len(data) < split:
        raise PayloadError("length", f"{len(data)} bytes cannot hold the low bits of {k} indices")
    quotients, spare, used = decode_symbols(data[split:], k, model, lanes, contexts)
    begun = spare.astype("<u2").view(np.uint8)
    if begun[shared:].any():
        raise PayloadError("indices", "padding bits are set")
    low = unpack_low(np.concatenate([begun[:shared], data[:split]]), each)
    escaped = np.flatnonzero(quotients == _ESCAPE)
    if len(data) - split - used != 4 * len(escaped):
        raise PayloadError("length", f"{len(data)} bytes do not hold the {len(escaped)} longest gaps and nothing else")
    high = quotients.astype(np.int64)
    high[escaped] += data[split + used :].view("<u4")
    # Beyond any vector already, and a shift and sum of such could overflow.
    if high.max(initial=0) > offsets[-1]:
        raise PayloadError("indices", "a gap is longer than the vector")
    return indices_of((high << each) + low, counts, offsets)


def _dense(k: int, d: int) -> bool:
    return 4 * k >= d and k > 0


def _byte_lanes(d: int) -> int:
    return max(1, (d + 7) // 8 // _BYTES_A_LANE)


def _gap_lanes(k: int, raw: int) -> int:
    """A quotient takes about three bits."""
    return max(1, (raw + 3 * k) // _BITS_A_LANE, -(-k // _MAX_STEPS)) if k else 0


def _octave(places: int, count: int) -> int:
    """places / count in eighths of an octave, rounded down: eight times the logarithm, in integers."""
    ratio = (places << 8) // count
    length = ratio.bit_length()
    return 8 * length + (ratio >> (length - 4) & 7)


def _density(octave: int) -> float:
    """count / places in the middle of its eighth; powers of two and one division, so every machine gets the same."""
    length, eighth = divmod(octave, 8)
    return 256.0 / ((8.5 + eighth) / 8 * 2.0 ** (length - 1))


def _width(octave: int) -> int:
    """b, so that the mean quotient is from 4 to 8, or from 2 to 4 where that takes a single low bit."""
    return max(1, octave // 8 - 11)


def _octaves(counts: Indices, offsets: Offsets) -> list[int]:
    """Of every tensor; one with nothing in it counts as a single index."""
    sizes = np.diff(offsets).tolist()
    return [_octave(max(n, 1), max(k, 1)) for n, k in zip(sizes, counts.tolist(), strict=True)]


def _rows(octaves: list[int]) -> tuple[list[int], Indices]:
    """The different ones, ascending, and which of them each is."""
    known = sorted(set(octaves))
    place = {octave: i for i, octave in enumerate(known)}
    return known, np.array([place[octave] for octave in octaves], dtype=np.int64)


def _gap_model(counts: Indices, offsets: Offsets) -> tuple[Model, Indices | None, Indices]:
    """The frequencies, each index's row of them, and each tensor's b."""
    octaves = _octaves(counts, offsets)
    known, row = _rows(octaves)
    widths = np.array([_width(octave) for octave in octaves], dtype=np.int64)
    model = Model(np.array([_geometric(_density(octave), _width(octave)) for octave in known], dtype=np.int64))
    return model, None if len(known) == 1 else np.repeat(row, counts), widths


def _geometric(density: float, width: int) -> list[int]:
    """Of quotients 0 to 62, and of all beyond: at least 1 of 2**14 each. Products only, so every machine agrees."""
    ratio = 1.0 - density
    for _ in range(width):
        ratio *= ratio
    left, frequencies = 1.0, []
    for _ in range(_ESCAPE):
        frequencies.append(1 + int(left * (1.0 - ratio) * (TOTAL - _ESCAPE - 1)))
        left *= ratio
    frequencies.append(1 + int(left * (TOTAL - _ESCAPE - 1)))
    frequencies[0] += TOTAL - sum(frequencies)
    return frequencies


def _byte_model(counts: Indices, offsets: Offsets) -> tuple[Model, Indices | None]:
    """The frequencies, and each byte's row of them, which is that of the tensor that its first bit is in."""
    known, row = _rows(_octaves(counts, offsets))
    model = Model(np.array([_bits_of_density(_density(octave)) for octave in known], dtype=np.int64))
    if len(known) == 1:
        return model, None
    first = np.arange(0, int(offsets[-1]), 8)
    return model, row[np.searchsorted(offsets, first, side="right") - 1]


def _bits_of_density(density: float) -> list[int]:
    """Of each byte, as if its bits were set independently: at least 1 of 2**14."""
    power = [1.0]
    for _ in range(8):
        power.append(power[-1] * density)
    other = [1.0]
    for _ in range(8):
        other.append(other[-1] * (1.0 - density))
    ones = [byte.bit_count() for byte in range(256)]
    frequencies = [1 + int(power[n] * other[8 - n] * (TOTAL - 256)) for n in ones]
    commonest = frequencies.index(max(frequencies))
    frequencies[commonest] += TOTAL - sum(frequencies)
    return frequencies
