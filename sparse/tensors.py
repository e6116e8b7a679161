"""The tensors of a flat vector as pruning sees them: name, place, shape, and whether their values may be left out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np

from sparse.masks import Mask, unpack_mask


@dataclass(frozen=True, slots=True)
class FlatTensor:
    """One tensor of a flat vector; `offset` counts values from the vector's start."""

    name: str
    offset: int
    shape: tuple[int, ...]
    prunable: bool

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def part(self) -> slice:
        """Its place in the vector."""
        return slice(self.offset, self.offset + self.size)


def prunable_of(tensors: Sequence[FlatTensor]) -> tuple[FlatTensor, ...]:
    """The tensors that may be pruned. Raises ValueError where there are none."""
    found = tuple(t for t in tensors if t.prunable and t.size)
    if not found:
        raise ValueError(
            "sparsity: no tensor is prunable; name some where the model is exported (TrainingSpec.prunable)"
        )
    return found


def prunable_mask(tensors: Sequence[FlatTensor]) -> Mask:
    """Where the values of prunable tensors lie: bool[n]."""
    mask = np.zeros(sum(t.size for t in tensors), dtype=np.bool_)
    for t in tensors:
        mask[t.part] = t.prunable
    return mask


def mask_over(tensors: Sequence[FlatTensor], data: bytes) -> Mask:
    """The mask over all their values whose bytes these are (masks.pack_mask): bool[n].

    Raises ValueError for another length, and for a mask that leaves out what is not prunable, by the tensor's name.
    """
    mask = unpack_mask(data, sum(t.size for t in tensors))
    for t in tensors:
        if not t.prunable and not mask[t.part].all():
            raise ValueError(f"mask: leaves out values of {t.name}, which is not prunable")
    return mask


def choose(tensors: Sequence[FlatTensor], patterns: Sequence[str]) -> tuple[FlatTensor, ...]:
    """The same tensors, of which those are prunable whose name matches a pattern, as in `features.*.weight`.

    Raises ValueError naming a pattern that matches nothing, and what there is to match.
    """
    for pattern in patterns:
        if not any(fnmatchcase(t.name, pattern) for t in tensors):
            raise ValueError(f"prunable: {pattern!r} matches no tensor; there are {', '.join(t.name for t in tensors)}")
    return tuple(replace(t, prunable=any(fnmatchcase(t.name, p) for p in patterns)) for t in tensors)
