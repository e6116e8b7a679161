"""Values as floats of 32 or 16 bits, little-endian; magnitudes that a format cannot hold are clipped to its largest.

bfloat16 is the upper half of a float32, rounded to nearest, ties to even: eight bits of mantissa, and the whole range.
"""

import numpy as np
import numpy.typing as npt

from sparse.codecs.errors import PayloadError
from sparse.codecs.selection import Vector

SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}

_FLOAT16_MAX = 65504.0
_BFLOAT16_MAX = 0x7F7F


def encode_floats(values: Vector, name: str) -> bytes:
    """values: float32[k], finite."""
    if name == "float32":
        return values.astype("<f4").tobytes()
    if name == "float16":
        return np.clip(values, -_FLOAT16_MAX, _FLOAT16_MAX).astype("<f2").tobytes()
    bits = np.ascontiguousarray(values).view(np.uint32)
    # The largest finite sum is below 2**32: the exponent of a finite float is not all ones.
    upper = (bits + (((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF))) >> np.uint32(16)
    sign = upper & np.uint32(0x8000)
    kept: npt.NDArray[np.uint32] = np.minimum(upper - sign, np.uint32(_BFLOAT16_MAX)) | sign
    return kept.astype("<u2").tobytes()


def decode_floats(data: npt.NDArray[np.uint8], k: int, name: str) -> Vector:
    """float32[k]. Raises PayloadError."""
    if len(data) != k * SIZES[name]:
        raise PayloadError("length", f"{len(data)} bytes cannot hold {k} values of {name}")
    if name == "bfloat16":
        values = (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        values = data.view("<f4" if name == "float32" else "<f2").astype(np.float32)
    if not np.isfinite(values).all():
        raise PayloadError("nonfinite", "NaN or infinity among the values")
    return values
