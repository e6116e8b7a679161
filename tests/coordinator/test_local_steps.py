"""How many local steps a round has: constant, post-local, and by a budget of bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.local_steps import BudgetSettings, StepRule, steps_left, steps_of

NONE = BudgetSettings()
MIB = 1 << 20


def budgeted(steps: int, mib: float, most: int = 1000, rounds: int = 10_000) -> StepRule:
    return StepRule(most, 0, BudgetSettings(steps, mib), rounds)


def run(rule: StepRule, price: int) -> list[int]:
    """The steps of every round until all are done, at a price that stays."""
    found: list[int] = []
    while steps_left(rule, [price] * len(found)):
        found.append(steps_of(rule, len(found) + 1, [price] * len(found)))
    return found


def test_a_constant_h_holds_from_the_first_round_on() -> None:
    assert [steps_of(StepRule(8, 0, NONE, 9), number, ()) for number in (1, 2, 9)] == [8, 8, 8]


def test_post_local_is_one_step_until_the_switch_round_and_h_from_it_on() -> None:
    assert [steps_of(StepRule(16, 3, NONE, 9), number, ()) for number in range(1, 6)] == [1, 1, 16, 16, 16]


def test_a_budget_that_pays_for_a_round_a_step_has_h_1() -> None:
    assert run(budgeted(50, 50), MIB) == [1] * 50


def test_a_quarter_of_the_bytes_takes_four_steps_a_round_and_spends_no_more() -> None:
    found = run(budgeted(100, 25), MIB)
    assert sum(found) >= 100
    assert len(found) == 25
    assert found[0] == 1
    assert set(found[1:]) <= {4, 5}


def test_a_round_has_at_most_local_steps_whatever_the_budget() -> None:
    assert max(run(budgeted(100, 5, most=10), MIB)) == 10


def test_h_rises_where_rounds_cost_more_than_they_did() -> None:
    rule = budgeted(100, 50)
    assert steps_of(rule, 11, [MIB] * 10) < steps_of(rule, 11, [2 * MIB] * 10)


def test_the_run_s_last_round_bounds_how_many_rounds_are_paid_for() -> None:
    rule = budgeted(100, 1000, rounds=10)
    assert [steps_of(rule, n, [MIB] * (n - 1)) for n in range(1, 11)] == [1, *[11] * 9]


@given(st.integers(1, 300), st.floats(0.1, 100), st.integers(1, 64), st.lists(st.integers(0, 10 * MIB), max_size=40))
def test_whatever_rounds_cost_they_have_1_to_local_steps_steps(
    steps: int, mib: float, most: int, spent: list[int]
) -> None:
    rule = budgeted(steps, mib, most)
    assert all(1 <= steps_of(rule, n + 1, spent) <= most for n in range(len(spent)))
    assert 0 <= steps_left(rule, spent) <= steps


@pytest.mark.parametrize("given", [(1, 0.0), (0, 1.0), (-1, 1.0), (1, float("nan")), (1, -1.0)])
def test_a_budget_needs_both_steps_and_bytes(given: tuple[int, float]) -> None:
    with pytest.raises(ValueError, match=r"steps|mib"):
        BudgetSettings(*given)
