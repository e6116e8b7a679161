"""Flat vectors with tensors in them, for tests of masks."""

from hypothesis import strategies as st

from sparse.tensors import FlatTensor

# Two that may be pruned, one of them a convolution, and between and behind them one that may not.
TENSORS = (
    FlatTensor("conv.weight", 0, (8, 2, 3), True),
    FlatTensor("conv.bias", 48, (8,), False),
    FlatTensor("head.weight", 56, (4, 8), True),
    FlatTensor("head.bias", 88, (4,), False),
)
N = 92
PRUNABLE = 80


def tensors(shapes: list[tuple[int, ...]]) -> tuple[FlatTensor, ...]:
    """Tensors of these shapes one after the other, all of them prunable."""
    found: list[FlatTensor] = []
    for i, shape in enumerate(shapes):
        found.append(FlatTensor(f"t{i}", found[-1].part.stop if found else 0, shape, True))
    return tuple(found)


shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=5)
