"""How many values each prunable tensor keeps of a total: by one threshold over all, equally, or by its shape."""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

from sparse.tensors import FlatTensor

Distribution = Literal["global", "uniform", "erk"]


def check_distribution(name: str) -> None:
    """Raises ValueError naming those there are."""
    if name not in get_args(Distribution):
        raise ValueError(f"distribution: {name!r} is unknown; use {', '.join(get_args(Distribution))}")


def kept_of(n: int, sparsity: float) -> int:
    """How many of n values stay at a sparsity."""
    return n - round(sparsity * n)


def shares(tensors: Sequence[FlatTensor], kept: int, distribution: Literal["uniform", "erk"]) -> list[int]:
    """How many values each of these tensors keeps: whole numbers whose sum is `kept`, 0 where a share rounds to it.

    uniform: the same density everywhere. erk: see `_erk`.
    """
    sizes = [t.size for t in tensors]
    assert 0 <= kept <= sum(sizes), f"{kept} kept of {sum(sizes)}"
    densities = [kept / sum(sizes)] * len(sizes) if distribution == "uniform" else _erk(tensors, kept)
    return _whole([d * n for d, n in zip(densities, sizes, strict=True)], sizes, kept)


def _erk(tensors: Sequence[FlatTensor], kept: int) -> list[float]:
    """Erdos-Renyi-kernel densities (Evci et al. 2020, RigL, section 3.1; without kernels Mocanu et al. 2018, SET).

    A tensor's density is in proportion to the sum of its axes over their product, so small tensors stay denser. As in
    RigL's code, the tensor whose density would be highest above 1 is kept whole, and the rest shared anew.
    """
    sizes = np.array([t.size for t in tensors], dtype=np.float64)
    raw = np.array([sum(t.shape) / t.size for t in tensors], dtype=np.float64)
    whole = np.zeros(len(tensors), dtype=np.bool_)
    while not whole.all():
        scale = max(0.0, kept - sizes[whole].sum()) / (raw * sizes)[~whole].sum()
        top = raw[~whole].max()
        if top * scale <= 1.0:
            return [float(d) for d in np.where(whole, 1.0, raw * scale)]
        whole |= raw == top
    return [1.0] * len(tensors)


def _whole(quotas: Sequence[float], sizes: Sequence[int], kept: int) -> list[int]:
    """Largest remainders: each quota rounded down, what is then missing given where most was cut, ties by index."""
    counts = [min(n, math.floor(q)) for q, n in zip(quotas, sizes, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: (counts[i] - quotas[i], i))
    missing = kept - sum(counts)
    assert missing >= 0, f"shares of {kept} sum up to more"
    # More than one pass only where full tensors pass theirs on.
    while missing:
        for i in order:
            if missing and counts[i] < sizes[i]:
                counts[i] += 1
                missing -= 1
    return counts
