"""The emulated clock: the least factor with which every device keeps up, and everything that has a time by it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.fleet.clock import ALONE, USED, Clock, Needed, chosen, needed
from devices.fleet.plan import Device
from devices.links import PROFILES, Link
from devices.links import Profile as LinkProfile
from protocol.errors import ConfigurationError
from tests.devices.fleet.plans import board

_STEPS = st.lists(st.tuples(st.floats(1, 200), st.booleans()), min_size=1, max_size=20)


@settings(deadline=None, max_examples=100)
@given(steps=_STEPS, native_ms=st.floats(0.5, 10), emulated_ms=st.floats(20, 400), cores=st.integers(1, 64))
def test_with_the_least_factor_quotas_just_fit_the_cores_and_no_device_needs_more_than_most_of_one(
    steps: list[tuple[float, bool]], native_ms: float, emulated_ms: float, cores: int
) -> None:
    devices = [Device(f"d{n}", board(step_ms=ms), native=native) for n, (ms, native) in enumerate(steps)]
    least = needed(devices, {"amd64": native_ms, "arm64": emulated_ms}, cores, "amd64")
    clock = Clock(least.real_s)
    quotas = [clock.quota(native_ms if d.native else emulated_ms, d.board.step_ms) for d in devices]
    assert max(quotas) <= ALONE * (1 + 1e-9)
    assert sum(quotas) <= USED * cores * (1 + 1e-9)
    assert max(quotas) == pytest.approx(ALONE) or sum(quotas) == pytest.approx(USED * cores)


def test_devices_that_are_light_or_have_cores_of_their_own_do_not_slow_the_clock_but_take_room() -> None:
    slow = Device("slow", board(step_ms=20.0))
    others = [Device("light", board(step_ms=0.01), light=True), Device("given", board(step_ms=0.01), cores=0.8)]
    assert needed([slow, *others], {"amd64": 10.0}, 1, "amd64").real_s == pytest.approx(0.5 / 0.1)
    assert needed(others, {}, 1, "amd64").real_s == 0.0
    with pytest.raises(ConfigurationError, match=r"cores given .* sum to 1.6.*leave cores out"):
        needed([slow, others[1], Device("two", board(), cores=0.8)], {"amd64": 10.0}, 1, "amd64")


def test_the_clock_is_never_faster_than_a_real_one_unless_asked_for_and_possible() -> None:
    assert chosen(None, Needed(0.2, "")).real_s == 1.0
    assert chosen(None, Needed(2.01, "")).real_s == pytest.approx(2.05)
    assert chosen(0.25, Needed(0.2, "")).real_s == 0.25
    with pytest.raises(ConfigurationError, match=r"clock: 1 real .* needs, 2\.01 \(pi4 needs"):
        chosen(1.0, Needed(2.01, "pi4 needs 80% of a core to keep up"))


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("real_s", [0.1, 1.0, 7.5])
def test_a_link_takes_as_long_for_its_bytes_by_the_emulated_clock_as_the_real_one_does(
    name: str, real_s: float
) -> None:
    clock, profile = Clock(real_s), PROFILES[name]
    scaled = clock.link(profile)
    assert scaled.link.latency_ms == pytest.approx(profile.link.latency_ms * real_s)
    assert profile.link.up_kbit_s is not None
    assert scaled.link.up_kbit_s is not None
    assert clock.emulated(1e6 / scaled.link.up_kbit_s) == pytest.approx(1e6 / profile.link.up_kbit_s)
    assert scaled.link.stall_s == pytest.approx(profile.link.stall_s * real_s)
    assert [step.at_s for step in scaled.steps] == pytest.approx([step.at_s * real_s for step in profile.steps])
    assert scaled.repeat_s == pytest.approx(profile.repeat_s * real_s)


def test_a_link_stays_within_what_links_may_be_however_slow_the_clock_is() -> None:
    extreme = LinkProfile(Link(latency_ms=3_000_000.0, jitter_ms=2_000_000.0, up_kbit_s=0.2, limit_bytes=7))
    scaled = Clock(1000.0).link(extreme).link
    assert (scaled.latency_ms, scaled.up_kbit_s, scaled.down_kbit_s, scaled.limit_bytes) == (3_600_000.0, 0.1, None, 7)


def test_the_coordinators_times_are_made_real_and_the_rest_is_left_alone() -> None:
    tables: dict[str, dict[str, object]] = {
        "rounds": {"deadline_s": 60, "late_hours": 2.0, "devices": 8},
        "limits": {"device_bytes_per_day": 1000},
        "training": {"codec": "topk:0.1/float16"},
    }
    scaled = Clock(2.5).settings(tables)
    assert scaled["rounds"] == {"deadline_s": 150.0, "late_hours": 5.0, "devices": 8}
    assert scaled["limits"] == {"device_bytes_per_day": 400}
    assert scaled["training"] == tables["training"]
    assert tables["rounds"]["deadline_s"] == 60
