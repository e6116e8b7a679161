"""Masks out of scores: exact counts, ties by index, shares over tensors, and what is refused with what would work."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse import scores
from sparse.distributions import Distribution, kept_of, shares
from sparse.masks import Vector, sparsity_of
from sparse.pruning import check_sparsity, prune, select
from sparse.tensors import choose, prunable_mask
from tests.sparse.flat import PRUNABLE, TENSORS, N, shapes, tensors

DISTRIBUTIONS: tuple[Distribution, ...] = ("global", "uniform", "erk")


def drawn(n: int, seed: int, levels: int = 1000) -> Vector:
    """Scores of so few levels that many are equal."""
    return (np.random.default_rng(seed).integers(0, levels, n) / levels).astype(np.float32)


@given(
    shapes=shapes,
    sparsity=st.floats(0.0, 0.9),
    distribution=st.sampled_from(DISTRIBUTIONS),
    seed=st.integers(0, 1000),
    levels=st.sampled_from([1, 3, 1000]),
)
def test_a_mask_has_exactly_the_asked_number_of_ones_or_says_what_would_work(
    shapes: list[tuple[int, ...]], sparsity: float, distribution: Distribution, seed: int, levels: int
) -> None:
    flat = tensors(shapes)
    n = flat[-1].part.stop
    worth = drawn(n, seed, levels)
    try:
        mask = prune(flat, worth, sparsity, distribution)
    except ValueError as error:
        asked, sparsity = sparsity, float(re.findall(r"leaves nothing of t\d .* that works is ([\d.]+)", str(error))[0])
        mask = prune(flat, worth, sparsity, distribution)
        nearer = sparsity < asked
    else:
        nearer = True
    assert nearer
    assert np.count_nonzero(mask) == kept_of(n, sparsity) == n - round(sparsity * n)
    assert all(mask[t.part].any() for t in flat)


@given(seed=st.integers(0, 1000), levels=st.sampled_from([1, 2, 5, 1000]), sparsity=st.floats(0.0, 0.95))
def test_a_global_mask_keeps_the_largest_of_all_and_of_equals_the_first(
    seed: int, levels: int, sparsity: float
) -> None:
    worth = drawn(N, seed, levels)
    mask = select(TENSORS, worth, 0.0, "global")
    assert mask.all()
    try:
        mask = prune(TENSORS, worth, sparsity, "global")
    except ValueError:
        return
    places = np.flatnonzero(prunable_mask(TENSORS))
    order = sorted(places, key=lambda i: (-worth[i], i))
    assert set(np.flatnonzero(mask & prunable_mask(TENSORS))) == set(order[: kept_of(PRUNABLE, sparsity)])
    assert mask[~prunable_mask(TENSORS)].all()


def test_ties_go_to_the_lower_index_within_each_tensor_too() -> None:
    flat = tensors([(4,), (6,)])
    for distribution in DISTRIBUTIONS[1:]:
        mask = prune(flat, np.ones(10, np.float32), 0.5, distribution)
        for t in flat:
            count = int(np.count_nonzero(mask[t.part]))
            assert mask[t.part].tolist() == [True] * count + [False] * (t.size - count)


@given(shapes=shapes, density=st.floats(0.0, 1.0))
def test_shares_sum_up_exactly_and_no_tensor_keeps_more_than_it_has(
    shapes: list[tuple[int, ...]], density: float
) -> None:
    flat = tensors(shapes)
    n = flat[-1].part.stop
    kept = round(density * n)
    for distribution in ("uniform", "erk"):
        counts = shares(flat, kept, distribution)
        assert sum(counts) == kept
        assert all(0 <= count <= t.size for count, t in zip(counts, flat, strict=True))


def test_uniform_gives_each_tensor_the_same_density() -> None:
    assert shares(tensors([(10, 10), (20, 10), (40, 10)]), 70, "uniform") == [10, 20, 40]


def test_erdos_renyi_kernels_are_rigls_numbers() -> None:
    # Two convolutions and a linear layer at 90 %: the first is kept whole, and of the others each density is in
    # proportion to (sum of axes) / (product of axes), worked out by hand.
    flat = tensors([(6, 1, 3, 3), (16, 6, 5, 5), (120, 400)])
    n = 54 + 2400 + 48000
    kept = kept_of(n, 0.9)
    rest = kept - 54
    raw = [32 / 2400 * 2400, 520 / 48000 * 48000]
    counts = shares(flat, kept, "erk")
    assert counts[0] == 54
    assert counts[1:] == [pytest.approx(rest * r / sum(raw), abs=1) for r in raw]
    assert sum(counts) == kept


def test_in_training_no_tensor_is_emptied_and_the_total_stays_exact() -> None:
    worth = np.ones(N, np.float32)
    worth[TENSORS[2].part] = 0.001
    worth[60] = 0.002
    with pytest.raises(ValueError, match=r"leaves nothing of head\.weight"):
        prune(TENSORS, worth, 0.5, "global")
    mask = select(TENSORS, worth, 0.5, "global")
    assert np.flatnonzero(mask[TENSORS[2].part]).tolist() == [4]
    assert sparsity_of(mask, prunable_mask(TENSORS)) == 0.5


def test_scores_are_what_their_papers_say() -> None:
    w, g = np.array([1, -2, 0], np.float32), np.array([-3, 0.5, 7], np.float32)
    np.testing.assert_array_equal(scores.magnitude(w), [1, 2, 0])
    np.testing.assert_array_equal(scores.gradient(g), [3, 0.5, 7])
    np.testing.assert_array_equal(scores.saliency(w, g), [3, 1, 0])
    first, again = (scores.random(100, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) > 90


def test_patterns_say_what_is_prunable_and_one_that_matches_nothing_is_refused() -> None:
    chosen = choose(TENSORS, ["head.*"])
    assert [t.name for t in chosen if t.prunable] == ["head.weight", "head.bias"]
    with pytest.raises(ValueError, match=r"'tail.\*' matches no tensor; there are conv.weight, conv.bias"):
        choose(TENSORS, ["head.*", "tail.*"])


@pytest.mark.parametrize(
    ("sparsity", "said"),
    [
        (1.0, "the nearest that works is 0.5875"),
        (-0.1, "the nearest that works is 0$"),
        (float("nan"), "the nearest that works is 0$"),
        (0.99, r"0.99 \(global\) leaves nothing of conv.weight \(48 values\)"),
    ],
)
def test_an_impossible_sparsity_is_refused_with_the_nearest_that_works(sparsity: float, said: str) -> None:
    worth = np.arange(N, dtype=np.float32)
    with pytest.raises(ValueError, match=said):
        prune(TENSORS, worth, sparsity, "global")


def test_what_no_scores_could_prune_is_refused_before_training() -> None:
    with pytest.raises(ValueError, match=r"keeps 1 values for 2 tensors, .* the nearest that works is 0.975"):
        check_sparsity(TENSORS, 0.99, "global")
    check_sparsity(TENSORS, 0.975, "global")
    with pytest.raises(ValueError, match=r"0.99 \(uniform\) leaves nothing of head.weight"):
        check_sparsity(TENSORS, 0.99, "uniform")
    with pytest.raises(ValueError, match="no tensor is prunable"):
        check_sparsity(TENSORS[1:2], 0.5, "global")
    with pytest.raises(ValueError, match="distribution: 'er' is unknown; use global, uniform, erk"):
        check_sparsity(TENSORS, 0.5, "er")  # type: ignore[arg-type]


def test_scores_that_are_no_numbers_are_refused_by_the_tensors_name() -> None:
    worth = np.ones(N, np.float32)
    worth[60] = np.nan
    with pytest.raises(ValueError, match=r"those of head\.weight are not all numbers"):
        prune(TENSORS, worth, 0.5)
