"""Masks: which parameters of a flat vector are kept, their bytes, and their digest.

A mask is bool[n] over the flat parameters, True where a value is kept. What must not be pruned (biases, norms) is True
in every mask, so that a masked vector is one product and a mask alone says which values travel.
"""

import hashlib
import struct

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Vector = npt.NDArray[np.float32]

DIGEST_BYTES = 32
_LENGTH = struct.Struct("<I")


def pack_mask(mask: Mask) -> bytes:
    """ceil(n / 8) bytes, lowest bit first, padding bits 0."""
    return np.packbits(mask, bitorder="little").tobytes()


def unpack_mask(data: bytes | memoryview, n: int) -> Mask:
    """The mask of n parameters in `data`: bool[n]. Raises ValueError for another length or padding that is set."""
    if len(data) != (n + 7) // 8:
        raise ValueError(f"mask: {len(data)} bytes where {n} parameters need {(n + 7) // 8}")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8), bitorder="little")
    if bits[n:].any():
        raise ValueError(f"mask: bits beyond the last of {n} parameters are set")
    return bits[:n].astype(np.bool_)


def mask_digest(mask: Mask) -> bytes:
    """32 bytes (SHA-256 of length and bits) that two sides share exactly when they hold the same mask."""
    return hashlib.sha256(_LENGTH.pack(len(mask)) + pack_mask(mask)).digest()


def masked(vector: Vector, mask: Mask) -> Vector:
    """vector where the mask keeps it, +0.0 elsewhere, as a new float32[n]; a value of -0.0 that is kept stays -0.0."""
    return np.where(mask, vector, np.float32(0.0))


def sparsity_of(mask: Mask, prunable: Mask) -> float:
    """The share of the prunable parameters that the mask leaves out; 0 where none are prunable."""
    count = int(np.count_nonzero(prunable))
    return 1.0 - int(np.count_nonzero(mask & prunable)) / count if count else 0.0
