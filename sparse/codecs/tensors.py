"""Where tensors begin and end in a flat vector, and the parts of it that share a scale or a parameter.

Both sides know the tensors from the layout whose digest a payload names, so boundaries are never sent.
"""

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

# The tensors of a vector in their order; None is one tensor of one dimension.
Shapes = Sequence[tuple[int, ...]]
Offsets = npt.NDArray[np.int64]

# Of scales: one for the whole vector, one for each tensor; any other number is a block's length.
WHOLE, TENSOR = 0, 1


def offsets_of(shapes: Shapes | None, d: int) -> Offsets:
    """Where the tensors begin, and d: int64[tensors + 1]. Raises ValueError where they do not make up d values."""
    if shapes is None or len(shapes) == d == 0:
        return np.array([0, d], dtype=np.int64)
    offsets = np.cumsum([0, *(prod(shape) for shape in shapes)], dtype=np.int64)
    if offsets[-1] != d:
        raise ValueError(f"tensors: {len(shapes)} of {offsets[-1]} values are named where the vector has {d}")
    return offsets


def starts_of(scope: int, k: int, bounds: Offsets) -> Offsets:
    """Where the parts of k values begin that have a scale of their own: int64[parts], ascending, none of them empty.

    bounds: where each tensor's values begin among the k, and k.
    """
    if scope == WHOLE:
        return np.zeros(min(k, 1), dtype=np.int64)
    if scope == TENSOR:
        return bounds[:-1][np.diff(bounds) > 0]
    return np.arange(0, k, scope, dtype=np.int64)


def max_parts(scope: int, k: int, tensors: int) -> int:
    """`starts_of` gives no more, whatever the bounds."""
    if scope == TENSOR:
        return min(k, tensors)
    return min(k, 1) if scope == WHOLE else -(-k // scope)
