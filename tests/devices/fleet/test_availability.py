"""A device is on when its duty, its day and its battery let it: laws that hold for all of them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.fleet.availability import Span, complement, intersection, on_spans, union
from devices.fleet.board import Availability, Battery

_TIMES = st.floats(0, 1000, allow_nan=False)
_SPANS = st.lists(st.tuples(_TIMES, _TIMES).map(lambda pair: (min(pair), max(pair))), max_size=12)
_BATTERIES = st.builds(
    Battery,
    capacity_wh=st.floats(0.01, 1.0),
    charge_w=st.floats(0.5, 10.0),
    level=st.floats(0, 1),
    off_below=st.floats(0.0, 0.3),
    on_above=st.floats(0.3, 1.0),
)


@st.composite
def _availabilities(draw: st.DrawFn) -> Availability:
    battery = draw(st.none() | _BATTERIES)
    day_s = draw(st.floats(100, 5000))
    edges = sorted(draw(st.lists(st.floats(0, day_s), max_size=6, unique=True)))
    return Availability(
        duty=draw(st.floats(0, 1)),
        period_s=draw(st.floats(10, 3000)),
        phase_s=draw(st.floats(0, 3000)),
        trace=tuple(draw(st.lists(st.floats(0, 1), max_size=24))),
        day_s=day_s,
        battery=battery,
        mains=tuple(zip(edges[::2], edges[1::2], strict=False)) if battery else (),
    )


def _length(spans: list[Span] | tuple[Span, ...]) -> float:
    return sum(end - begin for begin, end in spans)


def _edges(spans: tuple[Span, ...]) -> list[float]:
    return [edge for span in spans for edge in span]


def _assert_in_order(spans: tuple[Span, ...], until_s: float) -> None:
    edges = _edges(spans)
    assert edges == sorted(edges)
    assert all(0 <= edge <= until_s for edge in edges)


@settings(deadline=None, max_examples=60)
@given(availability=_availabilities(), seed=st.integers(0, 99), until_s=st.floats(1, 20_000))
def test_spans_are_in_order_within_the_time_and_the_same_every_time(
    availability: Availability, seed: int, until_s: float
) -> None:
    spans = on_spans(availability, 2.0, seed, "kitchen", until_s)
    _assert_in_order(spans, until_s)
    assert spans == on_spans(availability, 2.0, seed, "kitchen", until_s)


@settings(deadline=None, max_examples=60)
@given(availability=_availabilities(), until_s=st.floats(1, 10_000), more_s=st.floats(0, 10_000))
def test_a_longer_look_begins_with_the_same(availability: Availability, until_s: float, more_s: float) -> None:
    short = on_spans(availability, 2.0, 1, "kitchen", until_s)
    longer = on_spans(availability, 2.0, 1, "kitchen", until_s + more_s)
    begun = intersection(list(longer), [(0.0, until_s)])
    assert [edge for span in begun for edge in span] == pytest.approx([e for s in short for e in s], abs=1e-4)


@settings(deadline=None)
@given(a=_SPANS, b=_SPANS)
def test_union_complement_and_intersection_share_out_the_time(a: list[Span], b: list[Span]) -> None:
    both, either = intersection(union(a), union(b)), union(a + b)
    assert _length(both) + _length(either) == pytest.approx(_length(union(a)) + _length(union(b)), abs=1e-3)
    assert _length(either) + _length(complement(either, 1000.0)) == pytest.approx(1000.0, abs=1e-3)


@pytest.mark.parametrize("phase_s", [0.0, 7.0, 65.0])
def test_duty_is_the_share_of_a_period_from_its_phase_on(phase_s: float) -> None:
    spans = on_spans(Availability(duty=0.25, period_s=60.0, phase_s=phase_s), 2.0, 1, "kitchen", 600.0)
    assert _length(spans) == pytest.approx(150.0)
    assert (phase_s % 60.0, phase_s % 60.0 + 15.0) in spans


def test_a_trace_of_ones_and_zeros_is_kept_to_and_others_are_drawn_for_each_device_and_day() -> None:
    day = Availability(trace=(0.0, 1.0, 1.0, 0.0), day_s=400.0)
    assert on_spans(day, 2.0, 1, "kitchen", 800.0) == ((100.0, 300.0), (500.0, 700.0))
    half = Availability(trace=(0.5,) * 24, day_s=2400.0)
    drawn = {device: on_spans(half, 2.0, 1, device, 240_000.0) for device in ("kitchen", "cellar")}
    assert drawn["kitchen"] != drawn["cellar"]
    assert all(_length(spans) / 240_000 == pytest.approx(0.5, abs=0.05) for spans in drawn.values())


def test_a_battery_lasts_as_long_as_its_charge_and_comes_back_when_mains_has_filled_it() -> None:
    # 1 Wh at 2 W lasts half an hour; from empty to 50 % at 1 W takes half an hour of mains.
    battery = Battery(capacity_wh=1.0, charge_w=1.0, level=1.0, off_below=0.0, on_above=0.5)
    alone = Availability(battery=battery)
    assert _edges(on_spans(alone, 2.0, 1, "kitchen", 9000.0)) == pytest.approx([0.0, 1800.0])
    plugged = Availability(battery=battery, day_s=20_000.0, mains=((3600.0, 9000.0),))
    spans = on_spans(plugged, 2.0, 1, "kitchen", 9000.0)
    # Back at half full it drains by 2 W less 1 W of mains, which lasts half an hour; and so on.
    assert _edges(spans) == pytest.approx([0.0, 1800.0, 5400.0, 7200.0])


def test_a_device_that_must_charge_is_off_and_one_whose_charger_is_stronger_never_is() -> None:
    empty = Battery(capacity_wh=1.0, charge_w=5.0, level=0.0, off_below=0.1, on_above=0.3)
    assert on_spans(Availability(battery=empty), 2.0, 1, "kitchen", 5000.0) == ()
    spans = on_spans(Availability(battery=empty, mains=((0.0, 86_400.0),)), 2.0, 1, "kitchen", 5000.0)
    assert _edges(spans) == pytest.approx([0.3 * 3600 / 5.0, 5000.0])
