"""Schedules: the cubic rises, never falls, and ends where it was told to."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse.schedules import Schedule, constant, sparsity_at


@given(initial=st.floats(0.0, 0.5), final=st.floats(0.5, 0.999), begin=st.integers(0, 50), length=st.integers(0, 400))
def test_the_cubic_never_falls_and_hits_its_end_exactly(initial: float, final: float, begin: int, length: int) -> None:
    schedule = Schedule(initial, final, begin, begin + length)
    values = [sparsity_at(schedule, step) for step in range(begin + length + 3)]
    assert all(before <= after for before, after in pairwise(values))
    assert values[begin + length] == values[-1] == final
    assert all(value == initial for value in values[:begin])


def test_the_cubic_is_zhu_and_guptas() -> None:
    schedule = Schedule(0.0, 0.8, 100, 300)
    assert sparsity_at(schedule, 100) == 0.0
    # Half way, an eighth is left to prune.
    assert sparsity_at(schedule, 200) == pytest.approx(0.8 - 0.8 / 8)
    assert sparsity_at(schedule, 250) == pytest.approx(0.8 - 0.8 / 64)


def test_a_constant_is_the_same_at_every_step() -> None:
    assert {sparsity_at(constant(0.9), step) for step in (0, 1, 1000)} == {0.9}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0.5, 0.4, 0, 1), "from 0.5 to 0.4"),
        ((0.0, 1.0, 0, 1), "to 1.0"),
        ((0.0, float("nan"), 0, 1), "nan"),
        ((0.0, 0.9, 5, 4), "steps 5 to 4"),
        ((0.0, 0.9, -1, 4), "steps -1"),
    ],
)
def test_an_impossible_schedule_is_refused_by_its_values(arguments: tuple[float, float, int, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Schedule(*arguments)
