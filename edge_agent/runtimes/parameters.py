"""The initial model of a bundle, as one flat vector out of its safetensors file."""

from dataclasses import replace

import numpy as np

from edge_agent.runtimes import safetensors
from edge_agent.runtimes.engine import Vector
from protocol.bundle import PARAMETERS_FILE, Bundle
from protocol.errors import BundleError
from protocol.manifest import FULL, Manifest
from protocol.width import first_channels, narrowed, places


def seen_by(bundle: Bundle, variant: str) -> Bundle:
    """The bundle as a variant's engines see it, of a width tier narrower. Raises ConfigurationError."""
    return replace(bundle, manifest=narrowed(bundle.manifest, variant))


def initial_model(bundle: Bundle, variant: str = FULL) -> Vector:
    """The exported model, or of a width tier the slice of it with the first channels: float32[total] as the variant
    sees it, manifest order. Raises BundleError naming the tensor at fault."""
    manifest = bundle.manifest
    try:
        model = parse_parameters(manifest, bundle.path(PARAMETERS_FILE).read_bytes())
        return model[places(manifest, first_channels(manifest, variant))] if manifest.variant(variant).keep else model
    except OSError as error:
        raise BundleError(f"{PARAMETERS_FILE}: cannot be read ({error.strerror}); export the bundle again") from None


def parse_parameters(manifest: Manifest, data: bytes) -> Vector:
    """The model in a safetensors file's bytes: float32[total], manifest order. Raises BundleError."""
    file = safetensors.parse(PARAMETERS_FILE, data)
    model = np.empty(manifest.total, dtype=np.float32)
    for tensor in manifest.tensors:
        model[tensor.offset : tensor.offset + tensor.size] = file.array(tensor.name, shape=tensor.shape)
    return model
