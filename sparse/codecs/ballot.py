"""A device's mask as an update: one bit a weight, lowest bit first, and nothing else that grows with the model.

    offset  bytes        what (integers little-endian)
    0       4            magic "SFVB"
    4       4            d, weights
    8       8            layout digest: which weights
    16      4            CRC-32 of bytes 0 to 15 and the bits
    20      ceil(d / 8)  the bits, those beyond the last weight 0

A mask of d weights always has the same size, so that any other is refused before it is asked for.
"""

import struct
import zlib

from sparse.codecs.errors import PayloadError
from sparse.codecs.header import LAYOUT_BYTES
from sparse.masks import Mask, pack_mask, unpack_mask

# What tasks and offers call it, in place of a codec.
BALLOT = "ballot"
MAGIC = b"SFVB"
_HEADER, _CRC = struct.Struct("<4sI8s"), struct.Struct("<I")
BALLOT_HEADER_BYTES = _HEADER.size + _CRC.size


def encode_ballot(mask: Mask, layout: bytes) -> bytes:
    """The bytes of bool[d]. layout: 8 bytes."""
    assert len(layout) == LAYOUT_BYTES, f"a layout digest has {LAYOUT_BYTES} bytes, not {len(layout)}"
    head, bits = _HEADER.pack(MAGIC, len(mask), layout), pack_mask(mask)
    return head + _CRC.pack(zlib.crc32(bits, zlib.crc32(head))) + bits


def decode_ballot(payload: bytes | memoryview, d: int, layout: bytes) -> Mask:
    """The mask in these bytes: bool[d]. Raises PayloadError."""
    view = memoryview(payload).cast("B")
    if len(view) < BALLOT_HEADER_BYTES:
        raise PayloadError("truncated", f"{len(view)} bytes, the header alone has {BALLOT_HEADER_BYTES}")
    magic, said, of = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise PayloadError("magic", f"{magic!r} where {MAGIC!r} is due")
    if said != d:
        raise PayloadError("size", f"a mask of {said} where one of {d} is due")
    if of != layout:
        raise PayloadError("layout", f"layout {of.hex()} where {layout.hex()} is due")
    if len(view) != ballot_bytes(d):
        raise PayloadError("length", f"{len(view)} bytes where a mask of {d} has {ballot_bytes(d)}")
    bits = view[BALLOT_HEADER_BYTES:]
    if zlib.crc32(bits, zlib.crc32(view[: _HEADER.size])) != _CRC.unpack_from(view, _HEADER.size)[0]:
        raise PayloadError("checksum", "the bytes were altered on the way")
    try:
        return unpack_mask(bits, d)
    except ValueError as error:
        raise PayloadError("values", str(error)) from None


def ballot_bytes(d: int) -> int:
    """What every mask of d weights takes: ceil(d / 8) bytes, and the header."""
    return BALLOT_HEADER_BYTES + (d + 7) // 8
