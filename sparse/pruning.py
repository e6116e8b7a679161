"""Scores and a sparsity to a mask with exactly the asked number of ones, ties by index; or why that cannot be.

A sparsity is the share of prunable values that are left out. Whoever prunes a model by hand is refused a sparsity that
leaves nothing of a tensor (`prune`); a rule in the middle of training leaves each tensor its best value (`select`).
"""

import math
from collections.abc import Sequence

import numpy as np

from sparse.codecs.selection import top_k
from sparse.distributions import Distribution, check_distribution, kept_of, shares
from sparse.masks import Mask, Vector
from sparse.tensors import FlatTensor, prunable_of

# Decimals of the sparsity that a refusal names.
_DECIMALS = 4


def prune(
    tensors: Sequence[FlatTensor], scores: Vector, sparsity: float, distribution: Distribution = "global"
) -> Mask:
    """The mask that keeps the largest scores: bool[n], True where a tensor is not prunable. scores: float32[n].

    Raises ValueError naming a tensor of which nothing would be left, with the nearest sparsity that works.
    """
    prunable = prunable_of(tensors)
    check_distribution(distribution)
    _check_scores(prunable, scores)
    n = sum(t.size for t in prunable)
    if not sparsity >= 0.0:
        raise ValueError(f"sparsity: {sparsity} must be at least 0 and below 1; the nearest that works is 0")
    if sparsity >= 1.0:
        raise ValueError(
            f"sparsity: {sparsity} must be at least 0 and below 1; {_nearest(prunable, scores, n, 1, distribution)}"
        )
    kept = kept_of(n, sparsity)
    counts = _counts(prunable, scores, kept, distribution)
    for t, count in zip(prunable, counts, strict=True):
        if not count:
            raise ValueError(
                f"sparsity: {sparsity:g} ({distribution}) leaves nothing of {t.name} ({t.size} values); "
                f"{_nearest(prunable, scores, n, kept, distribution)}"
            )
    return _mask(tensors, prunable, scores, counts)


def select(tensors: Sequence[FlatTensor], scores: Vector, sparsity: float, distribution: Distribution) -> Mask:
    """As `prune`, but no tensor is left empty: each keeps its largest score at least, and the total is exact.

    The sparsity must be one that `check_sparsity` passed.
    """
    prunable = prunable_of(tensors)
    _check_scores(prunable, scores)
    kept = kept_of(sum(t.size for t in prunable), sparsity)
    counts = _counts(prunable, scores, kept, distribution)
    if distribution == "global" and 0 in counts:
        counts = _counts(prunable, _protected(prunable, scores), kept, distribution)
    return _mask(tensors, prunable, scores, counts)


def check_sparsity(tensors: Sequence[FlatTensor], sparsity: float, distribution: Distribution) -> None:
    """Raises ValueError where no scores at all could leave every prunable tensor a value, with what works."""
    prunable = prunable_of(tensors)
    check_distribution(distribution)
    n = sum(t.size for t in prunable)
    kept = kept_of(n, sparsity)
    if distribution == "global":
        if kept < len(prunable):
            raise ValueError(
                f"sparsity: {sparsity:g} keeps {kept} values for {len(prunable)} tensors, of which each needs one; "
                f"{_said(n, len(prunable))}"
            )
        return
    # Nothing but sizes and shapes says how such shares come out.
    prune(tensors, np.zeros(sum(t.size for t in tensors), dtype=np.float32), sparsity, distribution)


def _check_scores(prunable: Sequence[FlatTensor], scores: Vector) -> None:
    for t in prunable:
        if np.isnan(scores[t.part]).any():
            raise ValueError(f"scores: those of {t.name} are not all numbers; look whether training diverged")


def _counts(prunable: Sequence[FlatTensor], scores: Vector, kept: int, distribution: Distribution) -> list[int]:
    """How many values each prunable tensor keeps."""
    if distribution != "global":
        return shares(prunable, kept, distribution)
    chosen = top_k(np.concatenate([scores[t.part] for t in prunable]), kept)
    ends = np.cumsum([t.size for t in prunable])
    return [int(c) for c in np.diff(np.searchsorted(chosen, ends), prepend=0)]


def _protected(prunable: Sequence[FlatTensor], scores: Vector) -> Vector:
    """The scores, with the best of each tensor out of reach of all others."""
    raised = scores.copy()
    for t in prunable:
        raised[t.offset + int(np.argmax(scores[t.part]))] = np.inf
    return raised


def _mask(tensors: Sequence[FlatTensor], prunable: Sequence[FlatTensor], scores: Vector, counts: Sequence[int]) -> Mask:
    """The largest of each tensor. For a global threshold these are the largest of all, ties by index included."""
    mask = np.ones(sum(t.size for t in tensors), dtype=np.bool_)
    for t, count in zip(prunable, counts, strict=True):
        mask[t.part] = False
        mask[t.offset + top_k(scores[t.part], count)] = True
    return mask


def _nearest(prunable: Sequence[FlatTensor], scores: Vector, n: int, kept: int, distribution: Distribution) -> str:
    """Says the highest sparsity that leaves each tensor something, found between `kept`, which does not, and all."""
    too_few, enough = kept - 1, n
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if 0 in _counts(prunable, scores, middle, distribution):
            too_few = middle
        else:
            enough = middle
    return _said(n, enough)


def _said(n: int, kept: int) -> str:
    # Rounded down, so that what is said works.
    unit = 10**_DECIMALS
    return f"the nearest that works is {math.floor((1.0 - kept / n) * unit) / unit:g}"
