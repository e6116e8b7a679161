"""The arithmetic of sparsity, in NumPy: what is sent of a vector, and how few bytes it takes."""

from sparse.codecs import (
    CodecSpec,
    PayloadError,
    decode,
    decode_update,
    encode,
    encode_update,
    encode_with_feedback,
    max_payload_bytes,
    max_update_bytes,
    parse_codec,
)

__all__ = [
    "CodecSpec",
    "PayloadError",
    "decode",
    "decode_update",
    "encode",
    "encode_update",
    "encode_with_feedback",
    "max_payload_bytes",
    "max_update_bytes",
    "parse_codec",
]
