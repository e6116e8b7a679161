"""Update codecs: pure functions between flat float32 vectors and bytes."""

from sparse.codecs.ballot import BALLOT, ballot_bytes, decode_ballot, encode_ballot
from sparse.codecs.difference import apply_difference, encode_difference
from sparse.codecs.errors import PayloadError
from sparse.codecs.feedback import encode_with_feedback
from sparse.codecs.frame import decode, encode, max_payload_bytes
from sparse.codecs.mask import decode_mask, encode_mask, max_mask_bytes
from sparse.codecs.spec import CodecSpec, parse_codec
from sparse.codecs.tensors import Shapes
from sparse.codecs.typical import typical_update_bytes
from sparse.codecs.update import Shared, decode_report, decode_update, encode_update, max_update_bytes

__all__ = [
    "BALLOT",
    "CodecSpec",
    "PayloadError",
    "Shapes",
    "Shared",
    "apply_difference",
    "ballot_bytes",
    "decode",
    "decode_ballot",
    "decode_mask",
    "decode_report",
    "decode_update",
    "encode",
    "encode_ballot",
    "encode_difference",
    "encode_mask",
    "encode_update",
    "encode_with_feedback",
    "max_mask_bytes",
    "max_payload_bytes",
    "max_update_bytes",
    "parse_codec",
    "typical_update_bytes",
]
