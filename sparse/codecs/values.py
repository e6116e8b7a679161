"""The values that are sent, as bytes and back: one entry for each format."""

import numpy as np
import numpy.typing as npt

from sparse.codecs.drive import decode_drive, drive_bytes, encode_drive, read_block
from sparse.codecs.errors import PayloadError
from sparse.codecs.floats import SIZES, decode_floats, encode_floats
from sparse.codecs.header import VALUES, Header
from sparse.codecs.levels import decode_levels, encode_levels, max_level_bytes, read_levels
from sparse.codecs.selection import Vector
from sparse.codecs.signs import decode_signs, encode_signs, max_sign_bytes, said_scope
from sparse.codecs.spec import CodecSpec
from sparse.codecs.tensors import Offsets

Bytes = npt.NDArray[np.uint8]


def format_of(spec: CodecSpec) -> str:
    """The format on the wire: several names are one format with other parameters."""
    return {"int8": "levels", "int4": "levels", "qsgd": "levels", "ternary": "sign"}.get(spec.values, spec.values)


def encode_values(values: Vector, spec: CodecSpec, bounds: Offsets, seed: int) -> bytes:
    """values: float32[k], in the order of their places; bounds: of the tensors among them."""
    match format_of(spec):
        case "levels":
            norm = spec.values == "qsgd"
            drawn = seed if norm or spec.stochastic else None
            return encode_levels(values, spec.unit_levels, spec.scope, bounds, norm=norm, seed=drawn)
        case "sign":
            return encode_signs(values, spec.scope, bounds)
        case "drive":
            return encode_drive(values, spec.scope, seed)
        case name:
            return encode_floats(values, name)


def decode_values(header: Header, data: Bytes, bounds: Offsets) -> Vector:
    """float32[k], finite. Raises PayloadError."""
    match VALUES[header.values]:
        case "levels":
            return decode_levels(data, header.k, bounds)
        case "sign":
            return decode_signs(data, header.k, bounds)
        case "drive":
            return decode_drive(data, header.k)
        case name:
            return decode_floats(data, header.k, name)


def check_values(data: Bytes, spec: CodecSpec) -> None:
    """The parameters that value bytes begin with are those of `spec`. Raises PayloadError."""
    said: tuple[int, ...]
    due: tuple[int, ...]
    match format_of(spec):
        case "levels":
            said, due = read_levels(data), (spec.scope, spec.unit_levels)
        case "sign":
            said, due = (said_scope(data),), (spec.scope,)
        case "drive":
            said, due = (read_block(data),), (spec.scope,)
        case _:
            return
    if said != due:
        raise PayloadError("codec", f"parameters {said} where {spec} has {due}")


def max_value_bytes(k: int, spec: CodecSpec, tensors: int) -> int:
    """No k values take more."""
    match format_of(spec):
        case "levels":
            return max_level_bytes(k, spec.unit_levels, spec.scope, tensors)
        case "sign":
            return max_sign_bytes(k, spec.scope, tensors)
        case "drive":
            return drive_bytes(k, spec.scope)
        case name:
            return k * SIZES[name]
