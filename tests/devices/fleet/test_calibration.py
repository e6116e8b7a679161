"""Quotas that make the reference step take the catalogue's time, on a kernel that hands them out in periods."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.engines.cgroups import bandwidth
from devices.fleet.board import Power
from devices.fleet.calibration import TOLERANCE, Goal, bounded, verdict
from devices.fleet.clock import Clock
from devices.fleet.energy import board_cpu_s, watt_hours
from devices.fleet.reference import read_timing, step_from_benchmark
from protocol.errors import ConfigurationError


def _mean_step_ms(step_ms: float, quota: float, steps: int, overhead: float) -> float:
    """A kernel with bandwidth control: the quota of each period is used up, then all waits for the next period.

    overhead: what switching in and out costs, as a share of the step.
    """
    left_ms, period_ms = (us / 1e3 for us in bandwidth(quota))
    work, period, at, used = step_ms * (1 + overhead), 0, 0.0, 0.0
    for _ in range(steps):
        needed = work
        while needed > 1e-12:
            ran = min(needed, left_ms - used, period_ms - at)
            needed, at, used = needed - ran, at + ran, used + ran
            if needed > 1e-12:
                period, at, used = period + 1, 0.0, 0.0
    return (period * period_ms + at) / steps


@settings(deadline=None, max_examples=80)
@given(
    full_speed_ms=st.floats(0.5, 20),
    catalogue_ms=st.floats(2, 80),
    real_s=st.floats(1, 8),
    overhead=st.floats(0, 0.8),
)
def test_one_correction_brings_the_step_within_the_tolerance(
    full_speed_ms: float, catalogue_ms: float, real_s: float, overhead: float
) -> None:
    goal = Goal(catalogue_ms, full_speed_ms, Clock(real_s))
    ideal = goal.clock.quota(full_speed_ms * (1 + overhead), catalogue_ms)
    if not 0.002 <= ideal <= 1.0:
        return
    quota = goal.first
    real_ms = _mean_step_ms(full_speed_ms, quota, goal.steps, overhead)
    better = goal.corrected(quota, real_ms)
    if better is not None:
        quota, real_ms = better, _mean_step_ms(full_speed_ms, better, goal.steps, overhead)
    assert abs(goal.measured(real_ms).error) <= TOLERANCE
    assert quota == pytest.approx(ideal, rel=TOLERANCE)


def test_a_step_that_is_right_is_left_alone_and_one_that_cannot_be_is_reported() -> None:
    goal = Goal(20.0, 2.0, Clock(1.0))
    assert goal.first == pytest.approx(0.1)
    assert goal.corrected(0.1, 21.2) is None
    assert goal.corrected(0.1, 30.0) == pytest.approx(0.15)
    assert verdict(goal.measured(21.0)) == "21.0 ms a step, the catalogue says 20.0: +5%, within 15%"
    too_slow = Goal(20.0, 50.0, Clock(1.0))
    assert too_slow.corrected(too_slow.first, 50.0) is None
    assert verdict(too_slow.measured(50.0)).endswith("+150%, not within 15%")


def test_quotas_are_what_the_kernel_can_give() -> None:
    assert [bounded(quota) for quota in (1e-6, 0.5, 7.0)] == [0.002, 0.5, 1.0]


def test_a_timing_is_read_from_what_train_prints_and_anything_else_is_refused() -> None:
    printed = b'{"cpu_ms_per_step": 1.5, "ms_per_step": 1.75, "mean_ms_per_step": 20.25, "steps": 9}'
    assert (read_timing(printed), read_timing(printed, full_speed=True)) == (20.25, 1.5)
    for printed in (b"", b"{}", b"[1]", b'{"ms_per_step": 1, "mean_ms_per_step": null}'):
        with pytest.raises(ConfigurationError, match="reference step"):
            read_timing(printed)


def test_a_step_is_proportional_to_the_benchmark_and_says_how_it_was_derived() -> None:
    step_ms, how = step_from_benchmark(100.0)
    assert step_from_benchmark(200.0)[0] == pytest.approx(2 * step_ms, rel=0.01)
    assert how.startswith("derived: step_ms = ")


def test_energy_is_rest_while_on_and_what_a_busy_core_adds() -> None:
    power = Power(idle_w=2.0, busy_w=5.0)
    assert watt_hours(power, 3600.0, 0.0) == pytest.approx(2.0)
    assert watt_hours(power, 3600.0, 1800.0) == pytest.approx(3.5)
    # A tenth of a core with a clock of 2: one second here is five of the board's.
    assert board_cpu_s(1.0, 0.1, 2.0) == pytest.approx(5.0)
