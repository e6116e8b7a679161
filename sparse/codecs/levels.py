"""Values as whole multiples of a unit, from -levels to levels: int8 (127), int4 (7) and QSGD (as asked, up to 127).

The unit of a part of the vector is its largest magnitude / levels, or under QSGD its Euclidean norm / levels (Alistarh
et al. 2017, QSGD, section 3.1). Rounding is to the nearest, or at random to either neighbour so that the mean is right,
which QSGD always does. Where QSGD codes levels by Elias' code, we take rANS with the payload's own frequencies, or
plain bits where these are shorter.

    offset     bytes         what (integers little-endian)
    0          4             scope of a unit, as in signs.py
    4          1             levels, 1 to 127
    5          1             coding of the codes, value + levels: 0 bits, 1 rans
    6          4 * parts     units, float32, not negative
    ...        rest          0: w bits each, lowest first, w = 2 for 1 level, 4 for 7, 8 for 127; padding bits are 0
                             1: number of lanes (2 bytes), frequencies of the 2 * levels + 1 codes (2 bytes each), and
                                the codes (rans.py) in groups of g, the first weighing most, the last group filled up
                                with value 0; g = 5 for 1 level, 2 up to 7, else 1
"""

import struct

import numpy as np
import numpy.typing as npt

from sparse.codecs.drawing import uniform
from sparse.codecs.errors import PayloadError
from sparse.codecs.rans import BITS, TOTAL, Model, Symbols, decode_symbols, encode_symbols
from sparse.codecs.selection import Vector
from sparse.codecs.signs import read_scales, read_starts, spread
from sparse.codecs.tensors import Offsets, max_parts, starts_of

MAX_LEVELS = 127
_HEAD = struct.Struct("<IBB")
_LANES = struct.Struct("<H")
_PACKED, _RANS = 0, 1
_LARGEST = float(np.finfo(np.float32).max)
# A lane costs about 25 bits, and a step of the coder ten microseconds; a decoder takes no more steps than this.
_BITS_A_LANE = 1250
_MAX_STEPS = 1024
_MAX_LANES = (1 << 16) - 1


def encode_levels(
    values: Vector, levels: int, scope: int, bounds: Offsets, *, norm: bool = False, seed: int | None = None
) -> bytes:
    """values: float32[k]; bounds: of the tensors among them; norm: as QSGD measures; seed: of random rounding."""
    k, starts = len(values), starts_of(scope, len(values), bounds)
    units = _units(values, levels, starts, norm)
    # Where a unit is 0 so are all its values.
    divisors = spread(np.where(units > 0, units, np.float32(1)), starts, k)
    scaled = np.divide(values, divisors, out=divisors)
    if seed is None:
        np.rint(scaled, out=scaled)
    else:
        scaled += uniform(seed, k)
        np.floor(scaled, out=scaled)
    np.clip(scaled, -levels, levels, out=scaled)
    scaled += levels
    codes = scaled.astype(np.uint8)
    coding, coded = _encode_codes(codes, levels)
    return _HEAD.pack(scope, levels, coding) + units.astype("<f4").tobytes() + coded


def decode_levels(data: npt.NDArray[np.uint8], k: int, bounds: Offsets) -> Vector:
    """float32[k]. Raises PayloadError."""
    if len(data) < _HEAD.size:
        raise PayloadError("length", "no scope, levels and coding of the values")
    _, levels, coding = _HEAD.unpack_from(data.data)
    if not 1 <= levels <= MAX_LEVELS or coding not in (_PACKED, _RANS):
        raise PayloadError("codec", f"{levels} levels in coding {coding} are not known")
    starts = read_starts(data, k, bounds)
    end = _HEAD.size + 4 * len(starts)
    if len(data) < end:
        raise PayloadError("length", f"{len(data)} bytes cannot hold {len(starts)} units")
    units = read_scales(data[_HEAD.size : end])
    codes = (_unpack if coding == _PACKED else _decode_rans)(data[end:], k, levels)
    values = codes.astype(np.float32)
    values -= np.float32(levels)
    # One product of two floats: the same on every machine.
    with np.errstate(over="ignore"):
        values *= spread(units, starts, k) if len(units) > 1 else units[:1]
    if not np.isfinite(values).all():
        raise PayloadError("nonfinite", "levels of a unit that is too large")
    return values


def read_levels(data: npt.NDArray[np.uint8]) -> tuple[int, int]:
    """Scope and levels as the bytes say, unchecked; 0 levels where there are not even those."""
    scope, levels, _ = _HEAD.unpack_from(data.data) if len(data) >= _HEAD.size else (0, 0, 0)
    return scope, levels


def max_level_bytes(k: int, levels: int, scope: int, tensors: int) -> int:
    """No k values take more: rans is chosen only where it is shorter."""
    return _HEAD.size + 4 * max_parts(scope, k, tensors) + (k * _width(levels) + 7) // 8


def _units(values: Vector, levels: int, starts: Offsets, norm: bool) -> Vector:
    if len(starts) == 0:
        return np.zeros(0, dtype=np.float32)
    magnitudes = np.abs(values)
    if norm:
        square = np.square(magnitudes, dtype=np.float64)
        sizes = np.minimum(np.sqrt(np.add.reduceat(square, starts)), _LARGEST)
    else:
        sizes = np.maximum.reduceat(magnitudes, starts).astype(np.float64)
    units = (sizes / levels).astype(np.float32)
    # Rounded up, so that the largest value is within the levels, unless they would then be beyond float32.
    short = units.astype(np.float64) * levels < sizes
    units[short] = np.nextafter(units[short], np.float32(np.inf))
    most = np.float32(_LARGEST / levels)
    return np.minimum(units, most if float(most) * levels <= _LARGEST else np.nextafter(most, np.float32(0)))


def _encode_codes(codes: Symbols, levels: int) -> tuple[int, bytes]:
    """The shorter of plain bits and rANS."""
    packed = _packed_size(len(codes), levels)
    counts = np.bincount(codes, minlength=2 * levels + 1)
    least = _LANES.size + 2 * len(counts) + 4
    if packed <= least:
        return _PACKED, _pack(codes, levels)
    frequencies = _frequencies(counts)
    used = counts > 0
    bits = float((counts[used] * (np.log2(TOTAL) - np.log2(frequencies[used]))).sum())
    groups = _grouped(codes, levels)
    lanes = min(max(1, -(-len(groups) // _MAX_STEPS), int(bits / _BITS_A_LANE)), _MAX_LANES)
    if bits / 8 + 4 * lanes + least > packed:
        return _PACKED, _pack(codes, levels)
    model = _group_model(frequencies, levels)
    assert model is not None, "counted frequencies can be those of groups"
    stream = encode_symbols(groups, model, np.zeros(lanes, dtype=np.uint16))
    coded = _LANES.pack(lanes) + frequencies.astype("<u2").tobytes() + stream
    return (_RANS, coded) if len(coded) < packed else (_PACKED, _pack(codes, levels))


def _frequencies(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Of 2**14, none of what occurs at 0, what rounding leaves over to the commonest."""
    used = counts > 0
    frequencies = used + counts * (TOTAL - int(used.sum())) // int(counts.sum())
    frequencies[np.argmax(counts)] += TOTAL - int(frequencies.sum())
    return frequencies


def _decode_rans(data: npt.NDArray[np.uint8], k: int, levels: int) -> Symbols:
    table = _LANES.size + 2 * (2 * levels + 1)
    if len(data) < table:
        raise PayloadError("length", f"{len(data)} bytes cannot hold the frequencies of {2 * levels + 1} codes")
    lanes = _LANES.unpack_from(data.data)[0]
    frequencies = data[_LANES.size : table].view("<u2").astype(np.int64)
    count, model = -(-k // _group(levels)), _group_model(frequencies, levels)
    if model is None or not 1 <= lanes <= max(count, 1) or count > lanes * _MAX_STEPS:
        raise PayloadError("values", f"{lanes} lanes for {k} values, or frequencies that do not sum to {TOTAL}")
    groups, spare, used = decode_symbols(data[table:], count, model, lanes)
    if spare.any() or used != len(data) - table:
        raise PayloadError("values", "bytes beside the entropy code")
    return _ungrouped(groups, k, levels)


def _group(levels: int) -> int:
    """So many codes are coded as one symbol, which saves steps."""
    return 5 if levels == 1 else 2 if levels <= 7 else 1


def _grouped(codes: Symbols, levels: int) -> Symbols:
    size, base = _group(levels), 2 * levels + 1
    if size == 1:
        return codes
    filled = np.full(-(-len(codes) // size) * size, levels, dtype=np.uint8)
    filled[: len(codes)] = codes
    groups = filled[::size].copy()
    for i in range(1, size):
        groups *= np.uint8(base)
        groups += filled[i::size]
    return groups


def _ungrouped(groups: Symbols, k: int, levels: int) -> Symbols:
    size, base = _group(levels), 2 * levels + 1
    if size == 1:
        return groups
    # All the groups there can be, then a look-up: divisions of the whole vector take longer.
    table = np.indices((base,) * size, dtype=np.uint8).reshape(size, -1).T
    codes = table[groups].ravel()
    if (codes[k:] != levels).any():
        raise PayloadError("values", "values beyond the last")
    return codes[:k]


def _group_model(frequencies: npt.NDArray[np.int64], levels: int) -> Model | None:
    """Of groups, as if codes came independently: products in integers; None where the frequencies cannot be."""
    if int(frequencies.sum()) != TOTAL:
        return None
    # What fills the last group up may be a value that never occurs.
    single = np.maximum(frequencies, np.arange(len(frequencies)) == levels) if _group(levels) > 1 else frequencies
    joint = single
    for _ in range(_group(levels) - 1):
        product = np.multiply.outer(joint, single).ravel()
        joint = np.where(product > 0, np.maximum(product >> BITS, 1), 0)
    joint[np.argmax(joint)] += TOTAL - int(joint.sum())
    return Model(joint[None]) if joint.min() >= 0 and joint.max() > 0 else None


def _width(levels: int) -> int:
    """Of a code in bits: 2, 4 or 8, so that none crosses a byte."""
    bits = (2 * levels).bit_length()
    return next(width for width in (2, 4, 8) if bits <= width)


def _packed_size(k: int, levels: int) -> int:
    return (k * _width(levels) + 7) // 8


def _pack(codes: Symbols, levels: int) -> bytes:
    width = _width(levels)
    each = 8 // width
    table = np.zeros(-(-len(codes) // each) * each, dtype=np.uint8)
    table[: len(codes)] = codes
    packed = table[::each].copy()
    for i in range(1, each):
        packed |= table[i::each] << np.uint8(i * width)
    return packed.tobytes()


def _unpack(data: npt.NDArray[np.uint8], k: int, levels: int) -> Symbols:
    if len(data) != _packed_size(k, levels):
        raise PayloadError("length", f"{len(data)} bytes cannot hold {k} codes of {_width(levels)} bits")
    width = _width(levels)
    each = 8 // width
    codes = np.empty(len(data) * each, dtype=np.uint8)
    for i in range(each):
        codes[i::each] = (data >> np.uint8(i * width)) & np.uint8((1 << width) - 1)
    if codes[k:].any() or codes.max(initial=0) > 2 * levels:
        raise PayloadError("values", "a code beyond the levels, or padding bits that are set")
    return codes[:k]
