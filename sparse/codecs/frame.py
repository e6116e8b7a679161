"""One vector as bytes and back: selection, value format, index coding, behind a checked header (header.py).

    version  body
    1        index bytes (none, bitmap.py, rice.py, or the first 8 bytes of a mask's digest), then the values
    2        with indices, the length of the index bytes (4 bytes), then these (places.py); then the value bytes, which
             begin with the parameters of their format (floats.py, levels.py, signs.py, drive.py)
    2        PowerSGD: rank (1 byte), then the factors (powersgd.py); k is the number of floats

A mask is shared beforehand: the values are those at its True places, and in place of their indices stand the first 8
bytes of its digest, so that what was packed on one mask is never unpacked on another. The indices of random-k follow
from the seed that stands there.

The CRC finds accidents, at once and cheaply; who sent what is for the layer that signs. The decoder checks every
declared size against d and the bytes at hand before it allocates, so what a hostile payload costs is in proportion
to its own length and to the d that the receiver expects, not to what it claims.
"""

import struct
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sparse.codecs.drawing import MAX_SEED
from sparse.codecs.errors import PayloadError
from sparse.codecs.floats import SIZES, decode_floats
from sparse.codecs.header import (
    HEADER_BYTES,
    INDICES,
    LAYOUT_BYTES,
    SELECTIONS,
    VALUES,
    Header,
    check_sum,
    read_header,
    write_frame,
)
from sparse.codecs.places import MASK_BYTES, bounds_of, check_mask, choose, decode_places, max_index_bytes
from sparse.codecs.powersgd import MAX_RANK, decode_powersgd, encode_powersgd, factor_count
from sparse.codecs.selection import Vector
from sparse.codecs.spec import CodecSpec
from sparse.codecs.tensors import Offsets, Shapes, offsets_of
from sparse.codecs.values import check_values, decode_values, encode_values, format_of, max_value_bytes
from sparse.masks import Mask, masked

MAX_LENGTH = 1 << 30  # of a vector; the manifest's limit, and Rice arithmetic in int64 is safe below it

_LENGTH = struct.Struct("<I")
_MASK, _POWERSGD = SELECTIONS.index("mask"), SELECTIONS.index("powersgd")

Bytes = npt.NDArray[np.uint8]


def encode(
    vector: Vector,
    spec: CodecSpec,
    layout: bytes,
    mask: Mask | None = None,
    shapes: Shapes | None = None,
    seed: int = 0,
) -> bytes:
    """The payload of float32[d] under `spec`; the same vector and seed always give the same bytes. layout: 8 bytes.

    mask: bool[d], needed by the selection `mask` and unread by others. shapes: of the tensors that the vector is made
    of, for what is done for each of them; without them it is one. seed: of whatever is drawn, from 0 to 2**32 - 1.
    Magnitudes that a float format cannot hold are clipped; error feedback sends the rest later. Raises ValueError for a
    vector that is not flat, float32 and finite.
    """
    _check_vector(vector, layout, seed)
    d, offsets = len(vector), offsets_of(shapes, len(vector))
    if spec.selection == "powersgd":
        factors = encode_powersgd(vector, shapes or [(d,)], spec.rank, spec.values, seed)
        k, indices = len(factors) // SIZES[spec.values], 0
        body: tuple[bytes, ...] = (bytes([spec.rank]), factors)
    else:
        places = choose(vector, spec, offsets, mask, seed)
        kept = places.take(vector)
        k, indices = len(kept), places.coding
        body = (places.code, encode_values(kept, spec, bounds_of(places.at, offsets), seed))
    header = Header(
        SELECTIONS.index(spec.selection), VALUES.index(format_of(spec)), indices, d, k, layout, sum(map(len, body))
    )
    if header.version > 1 and indices:
        body = (_LENGTH.pack(len(body[0])), *body)
        header = replace(header, body=header.body + _LENGTH.size)
    return write_frame(header, body)


def decode(
    payload: bytes | memoryview,
    d: int,
    layout: bytes,
    spec: CodecSpec | None = None,
    mask: Mask | None = None,
    shapes: Shapes | None = None,
) -> Vector:
    """The vector of a payload: float32[d], zero where nothing was sent, the same bits on every machine.

    With `spec`, a payload under any other codec is refused. mask: bool[d], on which the selection `mask` is unpacked;
    without one it is refused. A codec of version 2 gives nothing off a mask. shapes: as `encode` had them. Raises
    PayloadError.
    """
    assert len(layout) == LAYOUT_BYTES, f"a layout digest has {LAYOUT_BYTES} bytes, not {len(layout)}"
    assert mask is None or len(mask) == d, f"a mask of {d} values has as many places"
    view = memoryview(payload).cast("B")
    header, offsets = read_header(view), offsets_of(shapes, d)
    _check_header(header, d, layout)
    if spec is not None:
        _check_codec(header, spec, shapes)
    if header.selection == _MASK:
        _check_mask(header, view, mask)
    check_sum(header, view)
    body = np.frombuffer(view[HEADER_BYTES:], dtype=np.uint8)
    if header.selection == _POWERSGD:
        vector = _decode_factors(header, body, spec, shapes or [(d,)])
    else:
        vector = _decode_body(header, body, spec, offsets, mask)
    return vector if mask is None or header.version == 1 else masked(vector, mask)


def frame_length(payload: bytes | memoryview) -> int:
    """How many bytes the frame at the start of `payload` says it has. Raises PayloadError."""
    return HEADER_BYTES + read_header(memoryview(payload).cast("B")).body


def max_payload_bytes(d: int, spec: CodecSpec, mask: Mask | None = None, shapes: Shapes | None = None) -> int:
    """No float32[d] encodes to more bytes than this under `spec`, and on `mask` where it selects by one."""
    k = spec.kept(d, shapes) if mask is None or spec.selection != "mask" else int(np.count_nonzero(mask))
    if spec.selection == "powersgd":
        return HEADER_BYTES + 1 + k * SIZES[spec.values]
    offsets = offsets_of(shapes, d)
    most = max_index_bytes(k, spec, offsets) + max_value_bytes(k, spec, len(offsets) - 1)
    return HEADER_BYTES + most + (_LENGTH.size if _prefixed(spec) else 0)


def _prefixed(spec: CodecSpec) -> bool:
    """Whether the length of the index bytes stands before them."""
    if spec.selection in ("topk", "mask"):
        return spec.values not in tuple(SIZES)[:2] or spec.indices not in ("none", "auto", "bitmap", "rice")
    return spec.selection == "randk"


def _check_vector(vector: Vector, layout: bytes, seed: int) -> None:
    if vector.ndim != 1 or vector.dtype != np.float32 or len(vector) > MAX_LENGTH:
        raise ValueError(
            f"vector: {vector.dtype}{vector.shape} cannot be encoded; it must be float32, flat, at most {MAX_LENGTH}"
        )
    if len(layout) != LAYOUT_BYTES:
        raise ValueError(f"layout: {len(layout)} bytes where a layout digest has {LAYOUT_BYTES}")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed: {seed} must be from 0 to {MAX_SEED}")
    # NaN is both the least and the largest; two reductions are faster than a look at each.
    if len(vector) and not (np.isfinite(vector.min()) and np.isfinite(vector.max())):
        at = int(np.flatnonzero(~np.isfinite(vector))[0])
        raise ValueError(f"vector: {vector[at]} at index {at} cannot be encoded; check that the training is stable")


def _check_header(header: Header, d: int, layout: bytes) -> None:
    """What the header claims can be true of a vector of d values of this layout."""
    if header.d != d:
        raise PayloadError("size", f"a vector of {header.d} where one of {d} is due")
    if header.layout != layout:
        raise PayloadError("layout", f"layout {header.layout.hex()} where {layout.hex()} is due")
    if header.k > d or (SELECTIONS[header.selection] == "all" and header.k != d):
        raise PayloadError("size", f"{header.k} values for a vector of {d}")
    if header.version > 1:
        return
    value_bytes = header.k * SIZES[VALUES[header.values]]
    # Rice codes have the length they have.
    index_bytes = (0, (d + 7) // 8, max(0, header.body - value_bytes), MASK_BYTES)[header.indices]
    if header.body != index_bytes + value_bytes:
        raise PayloadError("length", f"a body of {header.body} bytes cannot hold {header.k} of {d} values")


def _check_codec(header: Header, spec: CodecSpec, shapes: Shapes | None) -> None:
    named = SELECTIONS[header.selection] == spec.selection and VALUES[header.values] == format_of(spec)
    if not named or (spec.selection == "topk" and spec.indices != "auto" and INDICES[header.indices] != spec.indices):
        raise PayloadError("codec", f"the payload is not {spec}")
    # How many values a mask keeps is the mask's to say.
    if spec.selection != "mask" and header.k != spec.kept(header.d, shapes):
        kept = spec.kept(header.d, shapes)
        raise PayloadError("size", f"{header.k} values where {spec} keeps {kept} of {header.d}")


def _check_mask(header: Header, view: memoryview, mask: Mask | None) -> None:
    start = HEADER_BYTES + (_LENGTH.size if header.version > 1 else 0)
    check_mask(header, bytes(view[start : start + MASK_BYTES]), mask)


def _decode_factors(header: Header, body: Bytes, spec: CodecSpec | None, shapes: Shapes) -> Vector:
    rank = int(body[0]) if len(body) else 0
    if not 1 <= rank <= MAX_RANK or (spec is not None and rank != spec.rank):
        raise PayloadError("codec", f"a rank of {rank} is impossible, or not the one asked for")
    if header.k != factor_count(shapes, rank):
        raise PayloadError("size", f"{header.k} floats where rank {rank} needs {factor_count(shapes, rank)}")
    return decode_powersgd(decode_floats(body[1:], header.k, VALUES[header.values]), shapes, rank)


def _decode_body(header: Header, body: Bytes, spec: CodecSpec | None, offsets: Offsets, mask: Mask | None) -> Vector:
    code, data = _split(header, body)
    if spec is not None:
        check_values(data, spec)
    if header.version == 1:
        # What is cheap to refuse goes first; the values of version 1 need no places.
        values = decode_values(header, data, offsets)
        at = decode_places(header, code, offsets, mask)
    else:
        at = decode_places(header, code, offsets, mask)
        values = decode_values(header, data, bounds_of(at, offsets))
    if at is None:
        return values
    vector = np.zeros(header.d, dtype=np.float32)
    vector[at] = values
    return vector


def _split(header: Header, body: Bytes) -> tuple[Bytes, Bytes]:
    """Index bytes and value bytes."""
    if header.version == 1:
        split = len(body) - header.k * SIZES[VALUES[header.values]]
        return body[:split], body[split:]
    if header.indices == 0:
        return body[:0], body
    length = _LENGTH.unpack_from(body.data)[0] if len(body) >= _LENGTH.size else len(body)
    if length > len(body) - _LENGTH.size:
        raise PayloadError("length", f"{length} bytes of indices in a body of {len(body)}")
    return body[_LENGTH.size : _LENGTH.size + length], body[_LENGTH.size + length :]
