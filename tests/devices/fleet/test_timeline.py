"""What happens to a fleet is one list in order, and overlapping faults leave a device in a state that makes sense."""

import itertools
from typing import get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from devices.fleet.board import Availability
from devices.fleet.plan import Device, Fault, FaultKind, FleetPlan
from devices.fleet.timeline import Deed, deeds
from tests.devices.fleet.plans import board, plan

_NAMES = ("aa", "bb")
_DO: st.SearchStrategy[FaultKind] = st.sampled_from(get_args(FaultKind))


@st.composite
def _faults(draw: st.DrawFn) -> Fault:
    do = draw(_DO)
    values: dict[str, float] = {}
    if do in ("power-cut", "cut", "throttle", "disk-full"):
        values["for_s"] = draw(st.floats(0.5, 50))
    if do == "throttle":
        values["factor"] = draw(st.sampled_from([0.25, 0.5, 0.75]))
    if do == "clock-jump":
        values["by_s"] = draw(st.sampled_from([-3600.0, 60.0]))
    names = tuple(draw(st.sampled_from([("aa",), ("bb",), ("aa", "bb")])))
    return Fault(draw(st.floats(0, 100)), do, names, **values)


@st.composite
def _plans(draw: st.DrawFn) -> FleetPlan:
    duty = draw(st.sampled_from([1.0, 0.5]))
    kind = board(
        availability=Availability(duty=duty, period_s=40.0, phase_s=draw(st.floats(0, 40))),
        mtbf_s=draw(st.sampled_from([0.0, 60.0])),
        off_s=5.0,
    )
    faults = tuple(draw(st.lists(_faults(), max_size=10)))
    return plan(*(Device(name, kind) for name in _NAMES), faults=faults, seed=draw(st.integers(0, 9)))


def _of(done: tuple[Deed, ...], device: str, *kinds: str) -> list[Deed]:
    return [deed for deed in done if deed.device == device and deed.do in kinds]


@settings(deadline=None, max_examples=60)
@given(whole=_plans())
def test_deeds_are_in_order_and_what_begins_ends_before_it_begins_again(whole: FleetPlan) -> None:
    done = deeds(whole, 400.0)
    assert [deed.at_s for deed in done] == sorted(deed.at_s for deed in done)
    for device, (begins, ends) in itertools.product(
        _NAMES, [("power-off", "power-on"), ("cut", "restore"), ("disk-full", "disk-free")]
    ):
        kinds = [deed.do for deed in _of(done, device, begins, ends)]
        assert kinds == [begins, ends] * (len(kinds) // 2) + [begins] * (len(kinds) % 2)


@settings(deadline=None, max_examples=60)
@given(whole=_plans())
def test_nothing_is_killed_or_throttled_without_power_and_a_throttle_outlives_an_outage(whole: FleetPlan) -> None:
    for device in _NAMES:
        on, factor = True, 1.0
        throttles = [f for f in whole.faults if f.do == "throttle" and device in f.devices]
        own = [deed for deed in deeds(whole, 400.0) if deed.device == device]
        for at, together in itertools.groupby(own, key=lambda deed: deed.at_s):
            for deed in together:
                if deed.do in ("kill", "throttle"):
                    assert on
                if deed.do in ("power-off", "power-on"):
                    on = deed.do == "power-on"
                    factor = 1.0 if on else factor
                if deed.do == "throttle":
                    factor = deed.factor
            if on:
                active = [f.factor for f in throttles if f.at_s <= at < f.at_s + f.for_s]
                assert factor == min([1.0, *active])


def _away(phase_s: float) -> FleetPlan:
    kind = board(availability=Availability(duty=0.5, period_s=40.0, phase_s=phase_s))
    return plan(Device("aa", kind))


@settings(deadline=None, max_examples=60)
@given(whole=_plans(), edge=st.floats(0, 400))
@example(whole=_away(1.8744706882033904), edge=1.8744706882033904)
@example(whole=_away(1.8744706882033904), edge=1.8744707)
@example(whole=_away(1.8744706882033904), edge=1.8744706)
def test_looking_in_two_windows_finds_the_same_as_looking_once(whole: FleetPlan, edge: float) -> None:
    assert deeds(whole, edge) + deeds(whole, 400.0, edge) == deeds(whole, 400.0)


def test_a_power_cut_without_a_length_takes_the_boards_and_says_why() -> None:
    whole = plan(Device("aa", board(off_s=12.0)), faults=(Fault(5.0, "power-cut", ("aa",)),))
    assert deeds(whole, 100.0) == (
        Deed(5.0, "aa", "power-off", why="power cut"),
        Deed(17.0, "aa", "power-on", why="power cut"),
    )


def test_failures_come_as_often_as_the_board_says() -> None:
    whole = plan(Device("aa", board(mtbf_s=100.0, off_s=1.0)))
    failures = [deed for deed in deeds(whole, 100_000.0) if deed.do == "power-off"]
    assert len(failures) == pytest.approx(100_000 / 101, rel=0.1)
    assert {deed.why for deed in failures} == {"failure"}


def test_a_device_that_is_not_there_yet_is_off_from_the_start() -> None:
    kind = board(availability=Availability(duty=0.5, period_s=20.0, phase_s=10.0))
    assert deeds(plan(Device("aa", kind)), 25.0) == (
        Deed(0.0, "aa", "power-off", why="not available"),
        Deed(10.0, "aa", "power-on", why="not available"),
        Deed(20.0, "aa", "power-off", why="not available"),
    )
