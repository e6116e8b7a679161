"""A mask under which every output of a layer still reads something, at the same number of kept weights.

An output without weights is a constant. Behind a norm it is worse than useless: what the norm divides by is rounding,
so the slope there is noise, on every machine another one. Pruning freshly drawn weights leaves many such outputs.
"""

from collections.abc import Sequence

import numpy as np

from sparse.masks import Mask, Vector
from sparse.tensors import FlatTensor


def every_output_kept(tensors: Sequence[FlatTensor], scores: Vector, mask: Mask) -> Mask:
    """The mask with the best weight of each output that has none, in place of the least ones of others: bool[n].

    An output is a row along a prunable tensor's first axis. Each tensor keeps as many values as before; where these are
    fewer than its outputs, the best outputs get theirs. Ties go by index.
    """
    found = mask.copy()
    for tensor in tensors:
        if tensor.prunable and len(tensor.shape) > 1 and tensor.size:
            shape = (tensor.shape[0], -1)
            _spread(found[tensor.part].reshape(shape), scores[tensor.part].reshape(shape))
    return found


def _spread(mask: Mask, scores: Vector) -> None:
    """For one tensor as bool[outputs, inputs], in place."""
    dead = np.flatnonzero(~mask.any(1))
    if not len(dead):
        return
    best = scores.argmax(1)
    # What can be spared: all that is kept but each output's best.
    spare = mask.copy()
    kept_best = np.where(mask, scores, -np.inf).argmax(1)
    spare[np.arange(len(mask)), kept_best] = False
    places = np.flatnonzero(spare)
    least = places[np.argsort(scores.ravel()[places], kind="stable")]
    order = dead[np.argsort(-scores[dead, best[dead]], kind="stable")][: len(least)]
    mask[order, best[order]] = True
    mask[np.unravel_index(least[: len(order)], mask.shape)] = False
