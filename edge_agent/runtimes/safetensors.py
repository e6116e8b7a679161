"""Safetensors files, read and written with NumPy alone.

The format (https://huggingface.co/docs/safetensors): eight bytes of header length, a JSON header of name to type, shape
and offsets, then the data. Every claim of the header is checked before it is used.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_agent.runtimes.engine import Array
from protocol import bounded_json
from protocol.errors import BundleError

# Some 400 bytes a tensor at the manifest's limit of tensors.
MAX_HEADER_BYTES = 4 << 20
_TYPES = {"F32": "<f4", "I64": "<i8", "I32": "<i4", "I16": "<i2", "U8": "|u1"}
_NAMES = {np.dtype(said): name for name, said in _TYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorFile:
    """An opened file: `name` for messages, what its header says, and the data."""

    name: str
    header: Mapping[str, Any]
    body: memoryview

    @property
    def text(self) -> Mapping[str, Any]:
        """The texts that the file carries beside its tensors."""
        found = self.header.get("__metadata__", {})
        return found if isinstance(found, dict) else {}

    def array(self, tensor: str, types: tuple[str, ...] = ("F32",), shape: tuple[int, ...] | None = None) -> Array:
        """One tensor, flat where no shape is expected of it. Raises BundleError naming it if anything does not fit."""
        entry = self.header.get(tensor)
        if not isinstance(entry, dict):
            raise BundleError(f"{self.name}: does not hold {tensor}, which it must; export the bundle again")
        dtype, said = entry.get("dtype"), entry.get("shape")
        if not (isinstance(said, list) and len(said) <= 32 and all(type(d) is int and 0 <= d < 1 << 40 for d in said)):
            raise BundleError(f"{self.name}: {tensor} has no shape")
        if dtype not in types or (shape is not None and said != list(shape)):
            wanted = "/".join(types)
            raise BundleError(f"{self.name}: {tensor} is {dtype} {said} where {wanted} {_said(shape)} is needed")
        kind = np.dtype(_TYPES[str(dtype)])
        begin, end = self._place(tensor, entry, math.prod(said) * kind.itemsize)
        return np.frombuffer(self.body[begin:end], dtype=kind)

    def _place(self, tensor: str, entry: Mapping[str, Any], size: int) -> tuple[int, int]:
        offsets = entry.get("data_offsets")
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets)):
            raise BundleError(f"{self.name}: {tensor} has no data_offsets")
        begin, end = offsets
        if not 0 <= begin <= end <= len(self.body) or end - begin != size:
            raise BundleError(f"{self.name}: {tensor} lies at {begin}..{end}, outside the file or of wrong size")
        return begin, end


def parse(name: str, data: bytes) -> TensorFile:
    """The file in these bytes. Raises BundleError; tensors are checked when they are taken."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > MAX_HEADER_BYTES or 8 + size > len(data):
        raise BundleError(f"{name}: header of {size} bytes in a file of {len(data)}; truncated or altered")
    try:
        header = bounded_json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        raise BundleError(f"{name}: its header is not JSON; export the bundle again") from None
    if not isinstance(header, dict):
        raise BundleError(f"{name}: its header is not a table of tensors; export the bundle again")
    return TensorFile(name, header, memoryview(data)[8 + size :])


def format_tensors(arrays: Mapping[str, Array], text: Mapping[str, str]) -> bytes:
    """The bytes of a file, the same for the same arrays and texts.

    Widest elements first, so that each lies at a multiple of its own size.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(text.items()))}
    # Views, so that what is written is in memory once more and not twice.
    parts: list[memoryview] = []
    place = 0
    for name, value in sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])):
        part = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        offsets = [place, place + len(part)]
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        parts.append(part)
        place += part.nbytes
    said = json.dumps(header, separators=(",", ":")).encode()
    # The data begin at a multiple of eight.
    said += b" " * (-len(said) % 8)
    return b"".join((len(said).to_bytes(8, "little"), said, *parts))


def _said(shape: tuple[int, ...] | None) -> str:
    return "of any shape" if shape is None else str(shape)
