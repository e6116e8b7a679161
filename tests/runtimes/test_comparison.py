"""How far a step may be from torch's, and which of a tensor's values a record holds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.runtimes.comparison import Expected, compare, counts, places, sampled, whole

SIZES = st.lists(st.integers(0, 5000), max_size=30)


@given(SIZES, st.integers(0, 20000))
def test_the_budget_is_spent_and_no_tensor_gets_less_than_a_larger_one_unless_it_is_whole(
    sizes: list[int], budget: int
) -> None:
    shares = counts(sizes, budget)
    assert sum(shares) == min(budget, sum(sizes))
    for share, size in zip(shares, sizes, strict=True):
        assert share <= size
        assert share == size or share >= max(shares) - 1


@given(st.integers(1, 1 << 30), st.integers(1, 500))
def test_places_are_different_and_spread_over_the_whole_tensor(size: int, count: int) -> None:
    count = min(size, count)
    found = places(size, count)
    assert (np.diff(found) > 0).all()
    assert found[0] >= 0
    assert found[-1] < size
    # One in each of `count` equal stretches.
    begins = np.arange(count + 1) * size // count
    assert ((begins[:-1] <= found) & (found < begins[1:])).all()


def test_places_are_part_of_the_format() -> None:
    assert places(10, 4).tolist() == [0, 3, 5, 9]
    assert places(1000, 7).tolist() == [0, 230, 318, 550, 638, 726, 958]
    assert places(1 << 30, 3).tolist() == [0, 579116920, 800319900]
    assert places(5, 5).tolist() == [0, 1, 2, 3, 4]


def test_places_do_not_stay_in_one_column_of_a_matrix() -> None:
    assert len(set(places(64 * 1024, 64) % 1024)) > 32


def expected(*tensors: list[float]) -> list[Expected]:
    return [whole(f"t{i}", np.array(values, np.float32)) for i, values in enumerate(tensors)]


def found(*tensors: list[float]) -> list[np.ndarray[tuple[int], np.dtype[np.float32]]]:
    return [np.array(values, np.float32) for values in tensors]


def test_differences_are_relative_to_the_largest_magnitude() -> None:
    (row,) = compare("three steps", found([1.0, -4.001]), expected([1.0, -4.0]))
    assert row.difference == pytest.approx(0.00025, rel=1e-3)
    assert row.ok
    assert not compare("statistics", found([1.0, -4.001]), expected([1.0, -4.0]))[0].ok


def test_a_gradient_that_should_vanish_counts_as_a_share_of_the_largest() -> None:
    rows = compare("gradient", found([10.0], [1e-6]), expected([10.0], [0.0]))
    assert rows[1].difference == pytest.approx(1e-5, rel=1e-3)
    assert all(row.ok for row in rows)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_agrees_with_nothing(wrong: float) -> None:
    (row,) = compare("gradient", found([1.0, wrong]), expected([1.0, 2.0]))
    assert not row.ok
    assert row.excess == float("inf")


@given(st.integers(1, 3000), st.integers(1, 400))
def test_a_sampled_tensor_is_compared_at_its_own_places_with_the_whole_magnitude(size: int, budget: int) -> None:
    values = np.random.default_rng(size).normal(size=size).astype(np.float32)
    (brief,) = sampled([whole("t", values)], budget)
    assert brief.values.size == min(size, budget)
    assert brief.magnitude == np.abs(values).max()
    assert compare("gradient", [values], [brief])[0].difference == 0
    assert not compare("gradient", [values + np.float32(0.1)], [brief])[0].ok
