"""Which places of a vector are sent, and how the receiver learns which: one entry for each coding of indices."""

import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from sparse.codecs.bitmap import bitmap_size, decode_bitmap, encode_bitmap
from sparse.codecs.drawing import random_indices
from sparse.codecs.entropy_indices import decode_entropy, encode_entropy, estimated_bits, max_entropy_size
from sparse.codecs.errors import PayloadError
from sparse.codecs.floats import SIZES
from sparse.codecs.header import INDICES, Header
from sparse.codecs.rice import decode_rice, encode_rice, max_rice_size
from sparse.codecs.rice_tensors import decode_rice_tensors, encode_rice_tensors, max_rice_tensors_size
from sparse.codecs.selection import Indices, Vector, top_k
from sparse.codecs.spec import CodecSpec
from sparse.codecs.tensors import Offsets
from sparse.masks import Mask, mask_digest

MASK_BYTES = 8
_SEED = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Places:
    """The places that are sent: None for all, otherwise bool[d] or int64[k], ascending; and their bytes."""

    coding: int
    code: bytes
    at: Mask | Indices | None

    def take(self, vector: Vector) -> Vector:
        """The values there: float32[k]."""
        return vector if self.at is None else vector[self.at]


def choose(vector: Vector, spec: CodecSpec, offsets: Offsets, mask: Mask | None, seed: int) -> Places:
    """The places of `vector` that `spec` sends. Raises ValueError for a mask that is missing or another's."""
    d = len(vector)
    if spec.selection == "all":
        return Places(0, b"", None)
    if spec.selection == "mask":
        if mask is None or mask.shape != vector.shape:
            found = "none" if mask is None else f"one of {len(mask)} places"
            raise ValueError(f"mask: {found} is here where {spec} needs one of {d} places")
        return Places(INDICES.index("digest"), mask_digest(mask)[:MASK_BYTES], mask)
    if spec.selection == "randk":
        return Places(INDICES.index("seed"), _SEED.pack(seed), random_indices(seed, spec.kept(d), d))
    if spec.per_tensor:
        chosen = [a + top_k(vector[a:b], spec.of(b - a)) for a, b in pairwise(offsets.tolist())]
        indices = np.concatenate(chosen) if chosen else np.zeros(0, dtype=np.int64)
    else:
        indices = top_k(vector, spec.kept(d))
    name, code = _encode_indices(indices, offsets, spec)
    return Places(INDICES.index(name), code, indices)


def bounds_of(at: Mask | Indices | None, offsets: Offsets) -> Offsets:
    """Where each tensor's values begin among those that are sent, and their number: int64[tensors + 1]."""
    if at is None:
        return offsets
    indices = np.flatnonzero(at) if at.dtype == np.bool_ else at
    return np.searchsorted(indices, offsets)


def decode_places(
    header: Header, code: npt.NDArray[np.uint8], offsets: Offsets, mask: Mask | None
) -> Mask | Indices | None:
    """The places that the index bytes of a frame say; `mask` was checked. Raises PayloadError."""
    whole = offsets[[0, -1]]
    match INDICES[header.indices]:
        case "none":
            return None
        case "digest":
            return mask
        case "bitmap":
            return decode_bitmap(code, header.k, header.d)
        case "rice":
            return decode_rice(code, header.k, header.d)
        case "seed":
            if len(code) != _SEED.size:
                raise PayloadError("length", f"{len(code)} bytes where a seed has {_SEED.size}")
            return random_indices(_SEED.unpack_from(code.data)[0], header.k, header.d)
        case "rice@tensor":
            return decode_rice_tensors(code, header.k, offsets)
        case coding:
            return decode_entropy(code, header.k, offsets if coding == "rans@tensor" else whole)


def check_mask(header: Header, said: bytes, mask: Mask | None) -> None:
    """Before anything is unpacked, and before the checksum: the mask is the receiver's, the digest a claim."""
    if mask is None:
        raise PayloadError("mask", "packed on a mask where none is shared")
    due = mask_digest(mask)[:MASK_BYTES]
    if len(said) == MASK_BYTES and said != due:
        raise PayloadError("mask", f"packed on mask {said.hex()} where {due.hex()} is due")
    if header.k != np.count_nonzero(mask):
        raise PayloadError("size", f"{header.k} values where the mask keeps {np.count_nonzero(mask)} of {header.d}")


def max_index_bytes(k: int, spec: CodecSpec, offsets: Offsets) -> int:
    """No k places take more."""
    d = int(offsets[-1])
    if spec.selection != "topk":
        return {"mask": MASK_BYTES, "randk": _SEED.size}.get(spec.selection, 0)
    match spec.indices:
        case "rice":
            return max_rice_size(k, d)
        case "rice@tensor":
            return max_rice_tensors_size(k, offsets)
        case "rans":
            return max_entropy_size(k, offsets[[0, -1]])
        case "rans@tensor":
            return max_entropy_size(k, offsets)
        case "auto" if spec.values in _FIRST_VALUES:
            return min(bitmap_size(d), max_rice_size(k, d))
        case _:
            return bitmap_size(d)


# `auto` of these is as it was in version 1, so that agents and coordinators one version apart go on together.
_FIRST_VALUES = tuple(SIZES)[:2]
# Above the estimate at densities where a bitmap competes.
_ENTROPY_OVERHEAD = 1.01


def _encode_indices(chosen: Indices, offsets: Offsets, spec: CodecSpec) -> tuple[str, bytes]:
    d, whole = int(offsets[-1]), offsets[[0, -1]]
    match spec.indices:
        case "bitmap":
            return "bitmap", encode_bitmap(chosen, d)
        case "rice":
            return "rice", encode_rice(chosen)
        case "rice@tensor":
            return "rice@tensor", encode_rice_tensors(chosen, offsets)
        case "rans":
            return "rans", encode_entropy(chosen, whole)
        case "rans@tensor":
            return "rans@tensor", encode_entropy(chosen, offsets)
    if spec.values in _FIRST_VALUES:
        coding, code = "rice", encode_rice(chosen)
    else:
        coding, code = _shortest_entropy(chosen, offsets)
    return ("bitmap", encode_bitmap(chosen, d)) if bitmap_size(d) <= len(code) else (coding, code)


def _shortest_entropy(chosen: Indices, offsets: Offsets) -> tuple[str, bytes]:
    """By estimate, so that one is coded and not all; a bitmap where an entropy code can hardly be shorter."""
    d, whole = int(offsets[-1]), offsets[[0, -1]]
    counts = np.diff(np.searchsorted(chosen, offsets))
    apart, together = estimated_bits(counts, offsets), estimated_bits(counts.sum(keepdims=True), whole)
    if min(apart, together) * _ENTROPY_OVERHEAD >= d:
        return "bitmap", encode_bitmap(chosen, d)
    return (
        ("rans@tensor", encode_entropy(chosen, offsets))
        if apart < together
        else ("rans", encode_entropy(chosen, whole))
    )
