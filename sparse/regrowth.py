"""Drop and regrow: a sparse network that moves to other connections and keeps their number, tensor by tensor."""

import math
from collections.abc import Sequence

import numpy as np

from sparse import scores
from sparse.codecs.selection import top_k
from sparse.masks import Mask, Vector
from sparse.tensors import FlatTensor, prunable_of


def regrown(tensors: Sequence[FlatTensor], mask: Mask, weights: Vector, growth: Vector, fraction: float) -> Mask:
    """The mask after `fraction` of each tensor's kept values were dropped and as many grown: bool[n], as many ones.

    Dropped are the smallest |weights|, grown the largest `growth` among all that is then not kept; what was just
    dropped may be grown again, as in RigL's equation (Evci et al. 2020, section 3) and code, and so stays as it is.
    """
    result = mask.copy()
    for t in prunable_of(tensors):
        active = mask[t.part]
        count = int(np.count_nonzero(active))
        moved = int(fraction * count)
        # Off the mask nothing is to be chosen before what is on it, not even by its index.
        held = np.where(active, scores.magnitude(weights[t.part]), np.float32(-1.0))
        kept = np.zeros(t.size, dtype=np.bool_)
        kept[np.argsort(-held, kind="stable")[: count - moved]] = True
        free = np.flatnonzero(~kept)
        kept[free[top_k(growth[t.part][free], moved)]] = True
        result[t.part] = kept
    return result


def cosine(fraction: float, step: int, end: int) -> float:
    """RigL's share of connections to move at a step: `fraction` at 0, falling along half a cosine to 0 at `end`."""
    return 0.5 * fraction * (1.0 + math.cos(math.pi * min(step, end) / end)) if end else 0.0
