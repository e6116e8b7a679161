"""A mask on its way to a device: the places where it differs from a mask that the device has, or from one that keeps
nothing, as Rice-coded gaps or as a bitmap, whichever is smaller.

    offset  bytes  what (integers little-endian)
    0       1      coding: 1 bitmap, 2 rice, as in frame.py
    1       4      n, places of the mask
    5       4      k, places that differ
    9       rest   those places (bitmap.py or rice.py)

No checksum and no digest: the bytes travel as a blob that is named by its SHA-256, and the result must have the digest
that the task says (sparse.masks.mask_digest).
"""

import struct

import numpy as np

from sparse.codecs.bitmap import bitmap_size, decode_bitmap, encode_bitmap
from sparse.codecs.errors import PayloadError
from sparse.codecs.rice import decode_rice, encode_rice
from sparse.masks import Mask

_HEADER = struct.Struct("<BII")
_BITMAP, _RICE = 1, 2


def encode_mask(mask: Mask, base: Mask | None = None) -> bytes:
    """The bytes from which whoever has `base` gets `mask`, both bool[n]; without a base, anybody."""
    assert base is None or len(base) == len(mask), f"{len(base)} places and {len(mask)}"
    flips = np.flatnonzero(mask if base is None else mask != base)
    bitmap, rice = encode_bitmap(flips, len(mask)), encode_rice(flips)
    coding, body = (_RICE, rice) if len(rice) < len(bitmap) else (_BITMAP, bitmap)
    return _HEADER.pack(coding, len(mask), len(flips)) + body


def decode_mask(data: bytes | memoryview, n: int, base: Mask | None = None) -> Mask:
    """The mask of n places that `data` makes of `base`: bool[n]. Raises PayloadError.

    What hostile bytes cost is in proportion to n, which the receiver knows. Whether the base was the right one only the
    digest of the result can tell.
    """
    assert base is None or len(base) == n, f"a base of {len(base)} places where {n} are due"
    if len(data) < _HEADER.size:
        raise PayloadError("truncated", f"{len(data)} bytes, the header of a mask alone has {_HEADER.size}")
    coding, said, k = _HEADER.unpack_from(data)
    if coding not in (_BITMAP, _RICE):
        raise PayloadError("codec", f"coding {coding} of a mask is not known")
    if said != n or k > n:
        raise PayloadError("size", f"{k} of {said} places where a mask of {n} is due")
    body = np.frombuffer(data, dtype=np.uint8, offset=_HEADER.size)
    flips = (decode_bitmap if coding == _BITMAP else decode_rice)(body, k, n)
    mask = np.zeros(n, dtype=np.bool_) if base is None else base.copy()
    mask[flips] ^= True
    return mask


def max_mask_bytes(n: int) -> int:
    """No mask of n places takes more bytes than this."""
    return _HEADER.size + bitmap_size(n)
