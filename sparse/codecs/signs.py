"""Values as one sign bit each, and one magnitude for each part of the vector: its mean magnitude.

After top-k with one magnitude in all: sparse ternary compression (Sattler et al. 2019, Robust and
Communication-Efficient Federated Learning from Non-IID Data, algorithm 1). With a magnitude for each tensor: the scaled
sign of Karimireddy et al. 2019, Error Feedback Fixes SignSGD, section 4, ||p||_1 / d. Zero counts as positive.

    offset     bytes         what (integers little-endian)
    0          4             scope of a magnitude: 0 all values, 1 those of one tensor, n blocks of n values
    4          4 * parts     magnitudes, float32, not negative, in order; a tensor of which nothing is sent has none
    ...        ceil(k / 8)   signs, set where negative, from the lowest bit; padding bits are 0
"""

import struct

import numpy as np
import numpy.typing as npt

from sparse.codecs.errors import PayloadError
from sparse.codecs.selection import Vector
from sparse.codecs.tensors import TENSOR, WHOLE, Offsets, max_parts, starts_of

_SCOPE = struct.Struct("<I")
SCOPE_BYTES = _SCOPE.size


def encode_signs(values: Vector, scope: int, bounds: Offsets) -> bytes:
    """values: float32[k]; bounds: of the tensors among them."""
    starts = starts_of(scope, len(values), bounds)
    lengths = np.diff(starts, append=len(values))
    # The sender alone computes a mean; the receiver takes it from the payload, so its last bit matters to nobody.
    sums = np.add.reduceat(np.abs(values), starts, dtype=np.float64) if len(starts) else np.zeros(0)
    magnitudes = (sums / lengths).astype("<f4")
    signs = np.packbits(values < 0, bitorder="little").tobytes()
    return _SCOPE.pack(scope) + magnitudes.tobytes() + signs


def decode_signs(data: npt.NDArray[np.uint8], k: int, bounds: Offsets) -> Vector:
    """float32[k]. Raises PayloadError."""
    starts = read_starts(data, k, bounds)
    scales_end = SCOPE_BYTES + 4 * len(starts)
    if len(data) != scales_end + (k + 7) // 8:
        raise PayloadError("length", f"{len(data)} bytes cannot hold {len(starts)} magnitudes and {k} signs")
    magnitudes = read_scales(data[SCOPE_BYTES:scales_end])
    negative = np.unpackbits(data[scales_end:], bitorder="little")
    if negative[k:].any():
        raise PayloadError("values", "padding bits are set")
    values = spread(magnitudes, starts, k)
    # The sign bit itself: products and choices of floats take longer.
    values.view(np.uint32)[:] |= negative[:k].astype(np.uint32) << np.uint32(31)
    return values


def max_sign_bytes(k: int, scope: int, tensors: int) -> int:
    """No k values take more."""
    return SCOPE_BYTES + 4 * max_parts(scope, k, tensors) + (k + 7) // 8


def said_scope(data: npt.NDArray[np.uint8]) -> int:
    """The scope as the bytes say, unchecked; that of the whole vector where there is none."""
    return int(_SCOPE.unpack_from(data.data)[0]) if len(data) >= SCOPE_BYTES else WHOLE


def read_starts(data: npt.NDArray[np.uint8], k: int, bounds: Offsets) -> Offsets:
    """Where the parts begin that have a scale, as the scope at the head of `data` says. Raises PayloadError."""
    if len(data) < SCOPE_BYTES:
        raise PayloadError("length", "no scope of the scales")
    scope = _SCOPE.unpack_from(data.data)[0]
    # Before any array of them is made; tensors are the receiver's own.
    if scope != TENSOR and 4 * max_parts(scope, k, 0) > len(data):
        raise PayloadError("length", f"{len(data)} bytes cannot hold a scale for each {scope} of {k} values")
    return starts_of(scope, k, bounds)


def read_scales(data: npt.NDArray[np.uint8]) -> Vector:
    """Scales: float32, finite and not negative. Raises PayloadError."""
    scales = data.view("<f4").astype(np.float32)
    if not (np.isfinite(scales).all() and not np.signbit(scales).any()):
        raise PayloadError("nonfinite", "a scale that is negative, NaN or infinity")
    return scales


def spread(scales: Vector, starts: Offsets, k: int) -> Vector:
    """Each value's own scale: float32[k]."""
    if len(scales) == 1:
        return np.full(k, scales[0], dtype=np.float32)
    return np.repeat(scales, np.diff(starts, append=k))
