"""The mask that a bundle brings along: its model was pruned before the export, and training keeps its zeros."""

import numpy as np

from edge_agent.flat_tensors import flat_tensors
from protocol.bundle import Bundle, read_mask
from protocol.errors import BundleError
from protocol.layout import layout_of
from protocol.manifest import FULL
from sparse.dynamic import SparseRule
from sparse.masks import Mask, sparsity_of
from sparse.tensors import mask_over, prunable_mask


def mask_of(bundle: Bundle, variant: str = FULL) -> Mask | None:
    """Which of a variant's n parameters are kept: bool[n]; None where the bundle has no mask, or none of its zeros.

    Raises BundleError for a mask of another length, or one that leaves out what is not prunable.
    """
    data = read_mask(bundle.root, bundle.manifest)
    if data is None:
        return None
    try:
        whole = mask_over(flat_tensors(bundle.manifest, FULL), data)
    except ValueError as error:
        raise BundleError(f"{bundle.manifest.mask}: {error}; export the bundle again") from None
    mask: Mask = np.concatenate([whole[part] for part in layout_of(bundle.manifest, variant).parameters])
    return None if mask.all() else mask


def rule_of(bundle: Bundle, mask: Mask, variant: str = FULL) -> SparseRule:
    """The rule that keeps this mask as it is."""
    prunable = prunable_mask(flat_tensors(bundle.manifest, variant))
    return SparseRule("static", sparsity_of(mask, prunable))
