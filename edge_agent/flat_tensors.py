"""A bundle's tensors as masks see them: those that a variant trains, at their places among its parameters."""

from protocol.manifest import Manifest
from sparse.tensors import FlatTensor


def flat_tensors(manifest: Manifest, variant: str) -> tuple[FlatTensor, ...]:
    """What the variant trains, in the order of its flat parameter vector. Raises ConfigurationError for no variant."""
    frozen = manifest.variant(variant).frozen
    found, offset = [], 0
    for t in manifest.tensors:
        if t.kind == "parameter" and t.name not in frozen:
            found.append(FlatTensor(t.name, offset, t.shape, t.prunable))
            offset += t.size
    return tuple(found)
