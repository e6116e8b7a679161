"""When a device may train: each rule alone, its margin, and what is not known; how Linux says it, on a made-up tree."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.budgets import Budgets, Today
from edge_agent.conditions import EARLIEST_S, Device, day_of, second_of_day
from edge_agent.eligibility import Conditions, EligibilitySettings, Held, broken
from protocol.records import RecordError, read_record

EVERYTHING = EligibilitySettings(
    power="mains",
    least_battery_percent=50,
    most_temperature_c=70,
    most_load=0.5,
    least_memory_mib=100,
    least_disk_mib=200,
    metered="avoid",
    window="22:00-06:00",
    bytes_per_day=1000,
    writes_mib_per_day=1,
)
WELL = Conditions(
    on_mains=True,
    battery_percent=5,
    temperature_c=70,
    load=0.5,
    memory_mib=100,
    own_mib=80,
    disk_mib=200,
    interface="eth0",
    metered=False,
    second_of_day=0,
    bytes_today=999,
    writes_today=(1 << 20) - 1,
)
FREE = Held()


def words(settings: EligibilitySettings, now: Conditions, held: Held = FREE) -> list[str]:
    return [reason.word for reason in broken(settings, now, held)]


def test_by_default_nothing_is_asked_and_nothing_is_looked_at() -> None:
    assert not EligibilitySettings().any
    bad = Conditions(False, 0, 200, 99, 0, 0, 0, "ppp0", True, None, 1 << 60, 1 << 60)
    assert words(EligibilitySettings(), bad) == []


def test_at_its_limits_a_device_may_train_and_what_is_not_known_breaks_no_rule() -> None:
    assert words(EVERYTHING, WELL) == []
    assert words(EVERYTHING, Conditions(second_of_day=0)) == []


@pytest.mark.parametrize(
    ("change", "word", "says", "passes_s"),
    [
        ({"on_mains": False}, "power", "on battery, and eligibility.power asks for mains", 0),
        ({"temperature_c": 70.6}, "temperature", "71 C, over 70 C", 0),
        ({"load": 0.51}, "load", "other work has a load of 0.51 a core, over 0.50", 0),
        ({"memory_mib": 99}, "memory", "99 MiB of memory are free, under 100 MiB", 0),
        ({"disk_mib": 199}, "disk", "199 MiB of disk are free, under 200 MiB", 0),
        ({"metered": True, "interface": "wwan0"}, "metered", "the way out leads over wwan0, which is metered", 0),
        ({"second_of_day": 6 * 3600}, "window", "it is not 22:00-06:00, for another 960 minutes", 16 * 3600),
        ({"second_of_day": 21 * 3600 + 1800}, "window", "for another 30 minutes", 1800),
        ({"second_of_day": None}, "window", "the clock is not set, so that 22:00-06:00 cannot be kept", 0),
        ({"bytes_today": 1000, "second_of_day": 86_000}, "bytes", "1,000 bytes went over the link today, of", 400),
        ({"writes_today": 1 << 20}, "writes", "1 MiB were written today, of 1", 86_400),
    ],
)
def test_each_rule_is_broken_alone_and_says_by_what_and_when_it_is_over(
    change: dict[str, Any], word: str, says: str, passes_s: float
) -> None:
    (reason,) = broken(EVERYTHING, replace(WELL, **change))
    assert (reason.word, reason.passes_s) == (word, passes_s)
    assert says in reason.detail


@pytest.mark.parametrize(
    ("word", "name", "between", "beyond"),
    [
        ("temperature", "temperature_c", 66, 65),
        ("load", "load", 0.46, 0.45),
        ("memory", "memory_mib", 179, 180),
        ("disk", "disk_mib", 263, 264),
    ],
)
def test_what_was_broken_must_hold_with_a_margin(word: Any, name: str, between: float, beyond: float) -> None:
    held = Held(frozenset({word}), own_mib=80)
    assert words(EVERYTHING, replace(WELL, **{name: between})) == []  # type: ignore[arg-type]
    assert words(EVERYTHING, replace(WELL, **{name: between}), held) == [word]  # type: ignore[arg-type]
    assert words(EVERYTHING, replace(WELL, **{name: beyond}), held) == []  # type: ignore[arg-type]


def test_a_battery_is_asked_for_its_level_only_while_it_is_used_and_a_full_one_always_does() -> None:
    settings = EligibilitySettings(least_battery_percent=98)
    held = Held(frozenset({"power"}))
    assert words(settings, Conditions(on_mains=True, battery_percent=3)) == []
    assert words(settings, Conditions(on_mains=False, battery_percent=97)) == ["power"]
    assert words(settings, Conditions(on_mains=False, battery_percent=99), held) == ["power"]
    assert words(settings, Conditions(on_mains=False, battery_percent=100), held) == []


def test_a_window_within_one_day_opens_at_its_first_second_and_closes_at_its_last() -> None:
    settings = EligibilitySettings(window="09:30-17:00")
    found = {s: words(settings, Conditions(second_of_day=s)) for s in (34_199, 34_200, 61_199, 61_200)}
    assert found == {34_199: ["window"], 34_200: [], 61_199: [], 61_200: ["window"]}


@given(st.floats(0, 140), st.booleans())
def test_a_condition_that_wavers_less_than_its_margin_changes_nothing(start: float, up: bool) -> None:
    settings = EligibilitySettings(most_temperature_c=70)
    held, seen = Held(), []
    for step in range(6):
        degrees = start + (4.9 if (step % 2 == 0) == up else 0.0)
        found = frozenset(r.word for r in broken(settings, Conditions(temperature_c=degrees), held))
        held = Held(found)
        seen.append(bool(found))
    assert len(set(seen[1:])) == 1


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"window": "22-6"}, '^eligibility.window: .22-6. must be two times of day, for example "22:00-06:00"'),
        ({"window": "24:00-06:00"}, "^eligibility.window"),
        ({"window": "06:00-06:00"}, "^eligibility.window"),
        ({"least_battery_percent": 101}, "^eligibility.least_battery_percent"),
        ({"most_load": -1}, "^eligibility.most_load"),
        ({"bytes_per_day": -1}, "^eligibility.bytes_per_day"),
        ({"interval_s": 0.5}, "^eligibility.interval_s"),
        ({"wait_s": 1e9}, "^eligibility.wait_s"),
        ({"power": "solar"}, "^eligibility.power: 'solar' is not one of 'any', 'mains'"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(table: dict[str, Any], says: str) -> None:
    with pytest.raises(RecordError, match=says):
        read_record(EligibilitySettings, table, where="eligibility")


# How Linux says it


def write(root: Path, files: dict[str, str]) -> Device:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return Device(root, ("wwan*", "ppp?"), 1, root)


def supply(name: str, **values: str) -> dict[str, str]:
    return {f"sys/class/power_supply/{name}/{key}": f"{value}\n" for key, value in values.items()}


MAINS = supply("AC", type="Mains", online="1")
UNPLUGGED = supply("AC", type="Mains", online="0")
MOUSE = supply("mouse", type="Battery", scope="Device", status="Discharging", capacity="3")


@pytest.mark.parametrize(
    ("files", "on_mains", "percent"),
    [
        ({}, None, None),
        (MOUSE, None, None),
        (MAINS, True, None),
        ({**MAINS, **supply("BAT0", type="Battery", status="Discharging", capacity="70")}, True, 70),
        ({**UNPLUGGED, **supply("BAT0", type="Battery", status="Discharging", capacity="70")}, False, 70),
        ({**UNPLUGGED, **MOUSE}, False, None),
        (supply("BAT0", type="Battery", status="Charging", capacity="12"), True, 12),
        (supply("BAT0", type="Battery", status="Unknown", capacity=""), False, None),
        (
            {
                **supply("BAT0", type="Battery", status="Full", capacity="100"),
                **supply("BAT1", type="Battery", status="Discharging", capacity="40"),
            },
            False,
            40,
        ),
    ],
)
def test_power_is_read_as_the_kernel_says_it(
    tmp_path: Path, files: dict[str, str], on_mains: bool | None, percent: float | None
) -> None:
    found = write(tmp_path, files).conditions(EARLIEST_S, training=False)
    assert (found.on_mains, found.battery_percent) == (on_mains, percent)


def test_a_tree_that_says_nothing_leaves_everything_unknown(tmp_path: Path) -> None:
    found = Device(tmp_path / "none", root=tmp_path).conditions(0.0, training=True)
    assert found == Conditions()
    assert Device(tmp_path, root=tmp_path).written_bytes() is None


def test_temperature_load_memory_and_writes_are_read(tmp_path: Path) -> None:
    device = write(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/temp": "45678\n",
            "sys/class/thermal/thermal_zone1/temp": "-274000\n",
            "sys/class/thermal/thermal_zone2/temp": "51000\n",
            "sys/class/thermal/cooling_device0/temp": "99000\n",
            "proc/loadavg": "3.50 1.00 0.50 1/100 4242\n",
            "proc/meminfo": "MemTotal:  2048 kB\nMemAvailable:  1024 kB\n",
            "proc/self/status": "Name: agent\nVmRSS:\t 2048 kB\n",
            "proc/self/io": "rchar: 1\nwrite_bytes: 4096\ncancelled_write_bytes: 5\n",
            "proc/self/task/10/children": "77 \n",
            "proc/77/status": "VmRSS:\t 1024 kB\n",
            "proc/77/io": "write_bytes: 100\n",
        },
    )
    found = device.conditions(EARLIEST_S, training=True)
    cores = os.cpu_count() or 1
    assert (found.temperature_c, found.memory_mib, found.own_mib) == (51, 1, 3)
    assert found.load == pytest.approx(2.5 / cores)
    assert device.conditions(EARLIEST_S, training=False).load == pytest.approx(3.5 / cores)
    assert device.written_bytes() == 4196
    assert found.disk_mib is not None


ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"


@pytest.mark.parametrize(
    ("lines", "interface", "metered"),
    [
        ("", None, None),
        ("eth0\t0000A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0\n", None, None),
        ("wwan0\t00000000\t0101A8C0\t0003\t0\t0\t700\t00000000\t0\t0\t0\n", "wwan0", True),
        (
            "wwan0\t00000000\t0101A8C0\t0003\t0\t0\t700\t00000000\t0\t0\t0\n"
            "eth0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n",
            "eth0",
            False,
        ),
        ("ppp0\t00000000\t0101A8C0\t0002\t0\t0\t0\t00000000\t0\t0\t0\n", None, None),
    ],
)
def test_a_link_is_metered_by_the_interface_of_the_default_route(
    tmp_path: Path, lines: str, interface: str | None, metered: bool | None
) -> None:
    found = write(tmp_path, {"proc/net/route": ROUTES + lines}).conditions(EARLIEST_S, training=False)
    assert (found.interface, found.metered) == (interface, metered)


def test_this_machine_is_read_without_an_error(tmp_path: Path) -> None:
    found = Device(tmp_path).conditions(time.time(), training=False)
    assert found.memory_mib is not None
    assert found.memory_mib > 0
    assert found.own_mib is not None
    assert found.own_mib > 10
    assert found.load is not None


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("berlin")
def test_days_and_hours_are_local_and_a_clock_in_1970_is_none() -> None:
    midnight_utc = 1_800_057_600.0
    assert second_of_day(midnight_utc) == 3600
    assert day_of(midnight_utc) == midnight_utc // 86_400
    assert day_of(midnight_utc - 3600) == midnight_utc // 86_400
    assert day_of(midnight_utc - 3601) == midnight_utc // 86_400 - 1
    assert second_of_day(1000.0) is None
    assert day_of(1000.0) is None


# Budgets


def limited(state: Path) -> Budgets:
    return Budgets(state, sent=6400, written=64_000)


def test_a_day_is_added_up_over_starts_and_begins_anew_after_midnight(tmp_path: Path) -> None:
    budgets = limited(tmp_path)
    assert budgets.count(100, 500, 1000) == Today(100, 500, 1000)
    assert budgets.count(100, 700, 1000) == Today(100, 700, 1000)
    budgets.save()
    budgets = limited(tmp_path)
    assert budgets.count(100, 50, 30) == Today(100, 750, 1030)
    assert budgets.count(101, 60, 30) == Today(101, 10, 0)


def test_a_kill_forgets_no_more_than_a_part_of_a_budget(tmp_path: Path) -> None:
    budgets = limited(tmp_path)
    for sent in range(0, 5001, 50):
        budgets.count(100, sent, None)
    left = limited(tmp_path).today.sent
    assert 5000 - 6400 / 64 - 50 <= left <= 5000


def test_clocks_that_jump_give_no_day_twice_and_lose_none(tmp_path: Path) -> None:
    budgets = limited(tmp_path)
    budgets.count(100, 500, 0)
    assert budgets.count(None, 600, 0) == Today(100, 600), "in 1970 the last day goes on"
    assert budgets.count(99, 700, 0) == Today(100, 700), "set back a little, or another time zone"
    assert budgets.count(4000, 800, 0) == Today(4000, 100)
    assert budgets.count(100, 900, 0) == Today(100, 100), "the clock was years ahead, and is right again"


def test_a_counter_of_a_child_that_ended_takes_nothing_off(tmp_path: Path) -> None:
    budgets = limited(tmp_path)
    budgets.count(100, 0, 5000)
    assert budgets.count(100, 0, 300).written == 5000
    assert budgets.count(100, 0, 450).written == 5150
    assert budgets.count(100, 0, None).written == 5150


def test_a_file_of_budgets_that_is_damaged_begins_anew_and_none_is_written_without_a_limit(tmp_path: Path) -> None:
    (tmp_path / "today.json").write_text("{")
    assert limited(tmp_path).today == Today()
    (tmp_path / "today.json").unlink()
    budgets = Budgets(tmp_path, sent=0, written=0)
    budgets.count(100, 1 << 40, 1 << 40)
    budgets.save()
    assert not (tmp_path / "today.json").exists()
