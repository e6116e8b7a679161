"""The header of a frame: what it is of, by which codec, how long, and a checksum.

    offset  bytes  what (integers little-endian)
    0       4      magic "SFLV"
    4       1      version: 1, or 2 of a codec that version 1 did not have
    5       1      selection: 0 all, 1 top-k, 2 mask; version 2: 3 random-k, 4 PowerSGD
    6       1      values: 0 float32, 1 float16; version 2: 2 bfloat16, 3 levels, 4 sign, 5 drive
    7       1      indices: 0 none, 1 bitmap, 2 rice, 3 digest; version 2: 4 seed, 5 rice@tensor, 6 rans, 7 rans@tensor
    8       4      d, length of the vector
    12      4      k, values sent
    16      8      layout digest: which tensors the vector is made of
    24      8      n, length of the body
    32      4      CRC-32 of bytes 0 to 31 and the body

A codec has one version: what version 1 can say is never said in version 2, so that readers of either agree.
"""

import struct
import zlib
from dataclasses import dataclass

from sparse.codecs.errors import PayloadError

MAGIC = b"SFLV"
VERSIONS = (1, 2)
LAYOUT_BYTES = 8

_HEADER = struct.Struct("<4sBBBBII8sQ")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size

SELECTIONS = ("all", "topk", "mask", "randk", "powersgd")
VALUES = ("float32", "float16", "bfloat16", "levels", "sign", "drive")
INDICES = ("none", "bitmap", "rice", "digest", "seed", "rice@tensor", "rans", "rans@tensor")
# Which of the indices each selection may have.
_CODINGS = ((0,), (1, 2, 5, 6, 7), (3,), (4,), (0,))
_FIRST = (3, 2, 4)  # of each, how many version 1 knows
_FLOATS = 3  # of the values, those that PowerSGD can have


@dataclass(frozen=True, slots=True)
class Header:
    """What a frame says about itself; numbers index the tables above."""

    selection: int
    values: int
    indices: int
    d: int
    k: int
    layout: bytes
    body: int

    @property
    def version(self) -> int:
        """The one version that has this codec."""
        numbers = (self.selection, self.values, self.indices)
        return 1 if all(number < first for number, first in zip(numbers, _FIRST, strict=True)) else 2


def write_frame(header: Header, parts: tuple[bytes, ...]) -> bytes:
    """The header, with its checksum, and the parts of the body."""
    codec = (header.version, header.selection, header.values, header.indices)
    head = _HEADER.pack(MAGIC, *codec, header.d, header.k, header.layout, header.body)
    crc = zlib.crc32(head)
    for part in parts:
        crc = zlib.crc32(part, crc)
    return b"".join((head, _CRC.pack(crc), *parts))


def read_header(view: memoryview) -> Header:
    """Raises PayloadError for what is no header of ours or no codec."""
    if len(view) < HEADER_BYTES:
        raise PayloadError("truncated", f"{len(view)} bytes, the header alone has {HEADER_BYTES}")
    magic, version, selection, values, indices, d, k, layout, body = _HEADER.unpack_from(view)
    if magic != MAGIC:
        raise PayloadError("magic", f"{magic!r} where {MAGIC!r} is due")
    if version not in VERSIONS:
        raise PayloadError("version", f"version {version} where {VERSIONS[0]} to {VERSIONS[-1]} are known")
    known = selection < len(SELECTIONS) and values < len(VALUES)
    if not known or indices not in _CODINGS[selection] or (SELECTIONS[selection] == "powersgd" and values >= _FLOATS):
        codec = (selection, values, indices)
        raise PayloadError("codec", f"selection, values and indices {codec} are no codec of version {version}")
    header = Header(selection, values, indices, d, k, layout, body)
    if version != header.version:
        # To a reader of version 1 a codec of version 2 is none at all.
        raise PayloadError(
            "codec" if version < header.version else "version",
            f"version {version} of a codec that is of version {header.version}",
        )
    return header


def check_sum(header: Header, view: memoryview) -> None:
    """The frame is as long as it says, and not altered. Raises PayloadError."""
    due = HEADER_BYTES + header.body
    if len(view) != due:
        raise PayloadError("truncated" if len(view) < due else "length", f"{len(view)} bytes where {due} were declared")
    crc = zlib.crc32(view[HEADER_BYTES:], zlib.crc32(view[: _HEADER.size]))
    if crc != _CRC.unpack_from(view, _HEADER.size)[0]:
        raise PayloadError("checksum", "the bytes were altered on the way")
