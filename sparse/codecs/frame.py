"""One vector as bytes and back: selection, value format, index coding, behind a checked header.

    offset  bytes  what (integers little-endian)
    0       4      magic "SFLV"
    4       1      version, 1
    5       1      selection: 0 all, 1 top-k, 2 mask
    6       1      values: 0 float32, 1 float16
    7       1      indices: 0 none, 1 bitmap, 2 rice, 3 digest
    8       4      d, length of the vector
    12      4      k, values sent
    16      8      layout digest: which tensors the vector is made of
    24      8      n, length of the body
    32      4      CRC-32 of bytes 0 to 31 and the body
    36      n      body: index bytes (none, bitmap.py, rice.py or digest), then k values in index order, little-endian

A mask is shared beforehand: the values are those at its True places, and in place of their indices stand the first 8
bytes of its digest, so that what was packed on one mask is never unpacked on another.

The CRC finds accidents, at once and cheaply; who sent what is for the layer that signs. The decoder checks every
declared size against d and the bytes at hand before it allocates, so what a hostile payload costs is in proportion
to its own length and to the d that the receiver expects, not to what it claims.
"""

import struct
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sparse.codecs.bitmap import bitmap_size, decode_bitmap, encode_bitmap
from sparse.codecs.errors import PayloadError
from sparse.codecs.rice import decode_rice, encode_rice, max_rice_size
from sparse.codecs.selection import Indices, Vector, top_k
from sparse.codecs.spec import CodecSpec
from sparse.masks import Mask, mask_digest

MAGIC = b"SFLV"
VERSION = 1
LAYOUT_BYTES = 8
MASK_BYTES = 8
MAX_LENGTH = 1 << 30  # of a vector; the manifest's limit, and Rice arithmetic in int64 is safe below it

_HEADER = struct.Struct("<4sBBBBII8sQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size

_SELECTIONS = ("all", "topk", "mask")
_VALUES = ("float32", "float16")
_TYPES = (np.dtype("<f4"), np.dtype("<f2"))
_INDICES = ("none", "bitmap", "rice", "digest")
# Which of the indices each selection may have.
_CODINGS = ((0,), (1, 2), (3,))
_MASK = _SELECTIONS.index("mask")
_FLOAT16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class _Header:
    selection: int
    values: int
    indices: int
    d: int
    k: int
    layout: bytes
    body: int


def encode(vector: Vector, spec: CodecSpec, layout: bytes, mask: Mask | None = None) -> bytes:
    """The payload of float32[d] under `spec`; the same vector always gives the same bytes. layout: 8 bytes.

    mask: bool[d], needed by the selection `mask` and unread by others. Magnitudes beyond 65504 are clipped to it under
    float16; error feedback sends the rest later. Raises ValueError for a vector that is not flat, float32 and finite.
    """
    _check_vector(vector, layout)
    d = len(vector)
    indices, index_bytes, kept = _select(vector, spec, mask)
    k = len(kept)
    values = _VALUES.index(spec.values)
    if spec.values == "float16":
        kept = np.clip(kept, -_FLOAT16_MAX, _FLOAT16_MAX)
    value_bytes = np.ascontiguousarray(kept, dtype=_TYPES[values]).data.cast("B") if k else b""
    head = _HEADER.pack(
        MAGIC,
        VERSION,
        _SELECTIONS.index(spec.selection),
        values,
        indices,
        d,
        k,
        layout,
        len(index_bytes) + len(value_bytes),
    )
    crc = zlib.crc32(value_bytes, zlib.crc32(index_bytes, zlib.crc32(head)))
    return b"".join((head, _CRC.pack(crc), index_bytes, value_bytes))


def decode(
    payload: bytes | memoryview, d: int, layout: bytes, spec: CodecSpec | None = None, mask: Mask | None = None
) -> Vector:
    """The vector of a payload: float32[d], zero where nothing was sent, the same bits on every machine.

    With `spec`, a payload under any other codec is refused. mask: bool[d], on which the selection `mask` is unpacked;
    without one it is refused. Raises PayloadError.
    """
    assert len(layout) == LAYOUT_BYTES, f"a layout digest has {LAYOUT_BYTES} bytes, not {len(layout)}"
    assert mask is None or len(mask) == d, f"a mask of {d} values has as many places"
    view = memoryview(payload).cast("B")
    header = _read_header(view)
    _check_header(header, d, layout)
    if spec is not None:
        _check_codec(header, spec)
    if header.selection == _MASK:
        _check_mask(header, view, mask)
    if len(view) < HEADER_BYTES + header.body:
        raise PayloadError("truncated", f"{len(view)} bytes where {HEADER_BYTES + header.body} were declared")
    if len(view) > HEADER_BYTES + header.body:
        raise PayloadError("length", f"{len(view)} bytes where {HEADER_BYTES + header.body} were declared")
    body = view[HEADER_BYTES:]
    if zlib.crc32(body, zlib.crc32(view[: _HEADER.size])) != _CRC.unpack_from(view, _HEADER.size)[0]:
        raise PayloadError("checksum", "the bytes were altered on the way")
    return _decode_body(header, np.frombuffer(body, dtype=np.uint8), mask)


def frame_length(payload: bytes | memoryview) -> int:
    """How many bytes the frame at the start of `payload` says it has. Raises PayloadError."""
    return HEADER_BYTES + _read_header(memoryview(payload).cast("B")).body


def max_payload_bytes(d: int, spec: CodecSpec, mask: Mask | None = None) -> int:
    """No float32[d] encodes to more bytes than this under `spec`, and on `mask` where it selects by one."""
    k = spec.kept(d) if mask is None or spec.selection != "mask" else int(np.count_nonzero(mask))
    index_bytes = {
        "none": MASK_BYTES if spec.selection == "mask" else 0,
        "bitmap": bitmap_size(d),
        "rice": max_rice_size(k, d),
        "auto": min(bitmap_size(d), max_rice_size(k, d)),
    }[spec.indices]
    return HEADER_BYTES + index_bytes + k * _TYPES[_VALUES.index(spec.values)].itemsize


def _check_vector(vector: Vector, layout: bytes) -> None:
    if vector.ndim != 1 or vector.dtype != np.float32 or len(vector) > MAX_LENGTH:
        raise ValueError(
            f"vector: {vector.dtype}{vector.shape} cannot be encoded; it must be float32, flat, at most {MAX_LENGTH}"
        )
    if len(layout) != LAYOUT_BYTES:
        raise ValueError(f"layout: {len(layout)} bytes where a layout digest has {LAYOUT_BYTES}")
    finite = np.isfinite(vector)
    if not finite.all():
        at = int(np.flatnonzero(~finite)[0])
        raise ValueError(f"vector: {vector[at]} at index {at} cannot be encoded; check that the training is stable")


def _select(vector: Vector, spec: CodecSpec, mask: Mask | None) -> tuple[int, bytes, Vector]:
    """How the indices are coded, their bytes, and the values sent."""
    if spec.selection == "all":
        return 0, b"", vector
    if spec.selection == "mask":
        if mask is None or mask.shape != vector.shape:
            found = "none" if mask is None else f"one of {len(mask)} places"
            raise ValueError(f"mask: {found} is here where {spec} needs one of {len(vector)} places")
        return 3, mask_digest(mask)[:MASK_BYTES], vector[mask]
    chosen = top_k(vector, spec.kept(len(vector)))
    indices, index_bytes = _encode_indices(chosen, len(vector), spec)
    return indices, index_bytes, vector[chosen]


def _encode_indices(chosen: Indices, d: int, spec: CodecSpec) -> tuple[int, bytes]:
    if spec.indices == "bitmap":
        return 1, encode_bitmap(chosen, d)
    rice = encode_rice(chosen)
    if spec.indices == "auto" and bitmap_size(d) <= len(rice):
        return 1, encode_bitmap(chosen, d)
    return 2, rice


def _read_header(view: memoryview) -> _Header:
    if len(view) < HEADER_BYTES:
        raise PayloadError("truncated", f"{len(view)} bytes, the header alone has {HEADER_BYTES}")
    magic, version, selection, values, indices, d, k, layout, body = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise PayloadError("magic", f"starts with {magic!r}, not {MAGIC!r}")
    if version != VERSION:
        raise PayloadError("version", f"version {version}, this decoder reads {VERSION}")
    return _Header(selection, values, indices, d, k, layout, body)


def _check_header(header: _Header, d: int, layout: bytes) -> None:
    known = header.selection < len(_SELECTIONS) and header.values < len(_VALUES)
    if not known or header.indices not in _CODINGS[header.selection]:
        codec = (header.selection, header.values, header.indices)
        raise PayloadError("codec", f"selection, values and indices {codec} are no codec of version {VERSION}")
    if header.d != d:
        raise PayloadError("size", f"a vector of {header.d} where one of {d} is due")
    if header.layout != layout:
        raise PayloadError("layout", f"layout {header.layout.hex()} where {layout.hex()} is due")
    if header.k > d or (header.selection == 0 and header.k != d):
        raise PayloadError("size", f"{header.k} values for a vector of {d}")
    value_bytes = header.k * _TYPES[header.values].itemsize
    # Rice codes have the length they have.
    index_bytes = (0, bitmap_size(d), max(0, header.body - value_bytes), MASK_BYTES)[header.indices]
    if header.body != index_bytes + value_bytes:
        raise PayloadError("length", f"a body of {header.body} bytes cannot hold {header.k} of {d} values")


def _check_codec(header: _Header, spec: CodecSpec) -> None:
    named = _SELECTIONS[header.selection] == spec.selection and _VALUES[header.values] == spec.values
    if not named or (spec.selection == "topk" and spec.indices != "auto" and _INDICES[header.indices] != spec.indices):
        raise PayloadError("codec", f"the payload is not {spec}")
    # How many values a mask keeps is the mask's to say.
    if spec.selection != "mask" and header.k != spec.kept(header.d):
        raise PayloadError("size", f"{header.k} values where {spec} keeps {spec.kept(header.d)} of {header.d}")


def _check_mask(header: _Header, view: memoryview, mask: Mask | None) -> None:
    """Before anything is unpacked, and before the checksum: the mask is the receiver's, the digest a claim."""
    if mask is None:
        raise PayloadError("mask", "packed on a mask where none is shared")
    said, due = bytes(view[HEADER_BYTES : HEADER_BYTES + MASK_BYTES]), mask_digest(mask)[:MASK_BYTES]
    if len(said) == MASK_BYTES and said != due:
        raise PayloadError("mask", f"packed on mask {said.hex()} where {due.hex()} is due")
    if header.k != np.count_nonzero(mask):
        raise PayloadError("size", f"{header.k} values where the mask keeps {np.count_nonzero(mask)} of {header.d}")


def _decode_body(header: _Header, body: npt.NDArray[np.uint8], mask: Mask | None) -> Vector:
    split = len(body) - header.k * _TYPES[header.values].itemsize
    values = np.frombuffer(body[split:], dtype=_TYPES[header.values])
    if not np.isfinite(values).all():
        raise PayloadError("nonfinite", "NaN or infinity among the values")
    if header.indices == 0:
        return values.astype(np.float32)
    vector = np.zeros(header.d, dtype=np.float32)
    if header.selection == _MASK:
        vector[mask] = values
        return vector
    read = decode_bitmap if header.indices == 1 else decode_rice
    vector[read(body[:split], header.k, header.d)] = values
    return vector
