"""The initial model of a bundle, read from its safetensors file with NumPy alone.

The format (https://huggingface.co/docs/safetensors): eight bytes of header length, a JSON header of name to type, shape
and offsets, then the data. Every claim of the header is checked before it is used.
"""

import json
from typing import Any

import numpy as np

from edge_agent.runtimes.engine import Vector
from protocol.bundle import PARAMETERS_FILE, Bundle
from protocol.errors import BundleError
from protocol.manifest import Manifest, Tensor

# Some 400 bytes a tensor at the manifest's limit of tensors.
MAX_HEADER_BYTES = 4 << 20


def initial_model(bundle: Bundle) -> Vector:
    """The exported model: float32[total], manifest order. Raises BundleError naming the tensor at fault."""
    try:
        return parse_parameters(bundle.manifest, bundle.path(PARAMETERS_FILE).read_bytes())
    except OSError as error:
        raise BundleError(f"{PARAMETERS_FILE}: cannot be read ({error.strerror}); export the bundle again") from None


def parse_parameters(manifest: Manifest, data: bytes) -> Vector:
    """The model in a safetensors file's bytes: float32[total], manifest order. Raises BundleError."""
    header, start = _header(data)
    model = np.empty(manifest.total, dtype=np.float32)
    body = memoryview(data)[start:]
    for tensor in manifest.tensors:
        begin, end = _place(tensor, header.get(tensor.name), len(body))
        model[tensor.offset : tensor.offset + tensor.size] = np.frombuffer(body[begin:end], dtype="<f4")
    return model


def _header(data: bytes) -> tuple[dict[str, Any], int]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > MAX_HEADER_BYTES or 8 + size > len(data):
        raise BundleError(f"{PARAMETERS_FILE}: header of {size} bytes in a file of {len(data)}; truncated or altered")
    try:
        header = json.loads(data[8 : 8 + size])
    except (ValueError, RecursionError):
        raise BundleError(f"{PARAMETERS_FILE}: its header is not JSON; export the bundle again") from None
    if not isinstance(header, dict):
        raise BundleError(f"{PARAMETERS_FILE}: its header is not a table of tensors; export the bundle again")
    return header, 8 + size


def _place(tensor: Tensor, entry: Any, body: int) -> tuple[int, int]:
    """Where the tensor's bytes lie, after its entry has been held against the manifest."""
    if not isinstance(entry, dict):
        raise BundleError(f"{PARAMETERS_FILE}: does not hold {tensor.name}, which the manifest names")
    if entry.get("dtype") != "F32" or entry.get("shape") != list(tensor.shape):
        said = f"{entry.get('dtype')} {entry.get('shape')}"
        raise BundleError(f"{PARAMETERS_FILE}: {tensor.name} is {said} where the manifest says F32 {tensor.shape}")
    offsets = entry.get("data_offsets")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(o) is int for o in offsets)):
        raise BundleError(f"{PARAMETERS_FILE}: {tensor.name} has no data_offsets")
    begin, end = offsets
    if not 0 <= begin <= end <= body or end - begin != 4 * tensor.size:
        raise BundleError(f"{PARAMETERS_FILE}: {tensor.name} lies at {begin}..{end}, outside the file or of wrong size")
    return begin, end
