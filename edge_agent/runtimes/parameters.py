"""The initial model of a bundle, as one flat vector out of its safetensors file."""

import numpy as np

from edge_agent.runtimes import safetensors
from edge_agent.runtimes.engine import Vector
from protocol.bundle import PARAMETERS_FILE, Bundle
from protocol.errors import BundleError
from protocol.manifest import Manifest


def initial_model(bundle: Bundle) -> Vector:
    """The exported model: float32[total], manifest order. Raises BundleError naming the tensor at fault."""
    try:
        return parse_parameters(bundle.manifest, bundle.path(PARAMETERS_FILE).read_bytes())
    except OSError as error:
        raise BundleError(f"{PARAMETERS_FILE}: cannot be read ({error.strerror}); export the bundle again") from None


def parse_parameters(manifest: Manifest, data: bytes) -> Vector:
    """The model in a safetensors file's bytes: float32[total], manifest order. Raises BundleError."""
    file = safetensors.parse(PARAMETERS_FILE, data)
    model = np.empty(manifest.total, dtype=np.float32)
    for tensor in manifest.tensors:
        model[tensor.offset : tensor.offset + tensor.size] = file.array(tensor.name, shape=tensor.shape)
    return model
