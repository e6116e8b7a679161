"""A fleet's course on an engine in memory: the timeline in its order, what ends it, and what an operator asks for."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from devices.conductor import course as module
from devices.conductor.acts import Acts
from devices.conductor.course import Course
from devices.conductor.members import Member
from devices.conductor.telling import Telling
from devices.engines.engine import EngineError, Limits, Start
from devices.facts import Event, Finished, RoundCommitted
from devices.fleet.clock import Clock
from protocol.errors import ConfigurationError, SparsefleetError, UnreachableError
from tests.conductor.fake_engine import FakeEngine
from tests.conductor.plans import plan_of

_FAULTS = """
[[faults]]
at_s = 10.0
device = "pi4-1"
do = "power-cut"
for_s = 20.0

[[faults]]
at_s = 15.0
device = "pi4-2"
do = "cut"
for_s = 5.0

[[faults]]
at_s = 18.0
device = "light"
do = "kill"
"""


def course_of(folder: Path, engine: FakeEngine, told: AsyncIterator[Event]) -> Course:
    """All devices run; an emulated second is two milliseconds."""
    plan = plan_of(folder, _FAULTS)
    telling = Telling(Console(quiet=True), plan.rounds)
    members = {}
    for device in plan.devices:
        place = folder / device.name
        start = Start(plan.name, device.name, "amd64", Limits(), place, place, place)
        engine.prepare(start)
        engine.start(start, ("edge-agent", "run"))
        members[device.name] = Member(device, engine, start, wanted=True)
    return Course(plan, members, Acts(plan.name, telling, Clock(0.002)), told)


def run(course: Course, *others: Coroutine[Any, Any, object]) -> None:
    async def both() -> None:
        course.begin()
        await asyncio.gather(course.follow(), *others)

    asyncio.run(both())
    course.acts.hands.shutdown()


def committed(number: int) -> RoundCommitted:
    return RoundCommitted(round=number, devices=3, seconds=1.0, bytes_up=1, bytes_down=1)


def test_the_timeline_is_carried_out_in_its_order_until_the_rounds_are_done(tmp_path: Path) -> None:
    engine = FakeEngine()
    done = asyncio.Event()

    async def told() -> AsyncIterator[Event]:
        yield committed(1)
        await done.wait()
        yield Finished("rounds")

    async def wait_for_the_last() -> None:
        while "power-cut ends" not in [one.what for one in course.acts.telling.happenings]:
            await asyncio.sleep(0)
        done.set()

    course = course_of(tmp_path, engine, told())
    run(course, wait_for_the_last())
    said = [(one.what, one.device) for one in course.acts.telling.happenings if one.what not in ("exit", "start")]
    assert said == [
        ("power-cut", "pi4-1"),
        ("cut", "pi4-2"),
        ("kill", "light"),
        ("cut ends", "pi4-2"),
        ("power-cut ends", "pi4-1"),
    ]
    assert course.outcome == "rounds"
    assert [one.round.round for one in course.acts.telling.committed] == [1]


def test_a_coordinator_that_fails_ends_the_course_with_its_words(tmp_path: Path) -> None:
    async def told() -> AsyncIterator[Event]:
        yield committed(1)
        raise SparsefleetError("coordinator ended early (exit code 1)")

    with pytest.raises(SparsefleetError, match="ended early"):
        run(course_of(tmp_path, FakeEngine(), told()))


def test_an_engine_that_fails_for_one_device_is_said_and_the_fleet_goes_on(tmp_path: Path) -> None:
    class Failing(FakeEngine):
        def condition(self, fleet: str, device: str) -> Any:
            if device == "pi4-2":
                raise EngineError("podman inspect: no answer")
            return super().condition(fleet, device)

    async def told() -> AsyncIterator[Event]:
        while not course.acts.telling.happenings:
            await asyncio.sleep(0)
        yield Finished("rounds")

    course = course_of(tmp_path, Failing(), told())
    run(course)
    assert ("pi4-2", "engine") in [(one.device, one.what) for one in course.acts.telling.happenings]
    assert course.outcome == "rounds"


def test_an_operator_asks_for_what_there_is_and_of_devices_that_there_are(tmp_path: Path) -> None:
    async def told() -> AsyncIterator[Event]:
        await never.wait()
        yield Finished("rounds")

    never = asyncio.Event()

    async def operator() -> None:
        cable = course.members["light"].cable
        held = []
        for word in ("cut", "restore"):
            assert (await course.answer({"do": word, "devices": ["light"]}))["devices"] == ["light"]
            held.append(cable.cut)
        assert held == [True, False]
        for wrong in ({"do": "cut", "devices": ["toaster"]}, {"do": "cut"}, {"do": "melt", "devices": ["light"]}):
            with pytest.raises(ConfigurationError):
                await course.answer(wrong)
        assert (await course.answer({"do": "status"}))["running"] is True
        await course.answer({"do": "down"})

    course = course_of(tmp_path, FakeEngine(), told())
    run(course, operator())
    assert course.outcome == "taken down"


def course_that_nobody_ends(folder: Path, monkeypatch: pytest.MonkeyPatch, alone_s: float = 1e6) -> Course:
    monkeypatch.setattr(module, "_LOOK_S", 0.001)
    monkeypatch.setattr(module, "STALL_S", 5.0)
    monkeypatch.setattr(module, "ALONE_S", alone_s)

    async def told() -> AsyncIterator[Event]:
        await asyncio.Event().wait()
        yield Finished("rounds")

    course = course_of(folder, FakeEngine(), told())
    # The faults of the plan are not what this is about.
    course.plan = plan_of(folder)
    return course


def test_rounds_that_never_end_are_not_waited_for_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    course = course_that_nobody_ends(tmp_path, monkeypatch)
    run(course)
    assert course.outcome == "no round came to its end in 5 emulated seconds"
    slow = course_that_nobody_ends(tmp_path, monkeypatch)
    slow.plan = plan_of(tmp_path, "[coordinator.rounds]\ndeadline_s = 4.0\n")
    run(slow)
    assert slow.outcome == "no round came to its end in 12 emulated seconds"


def test_time_without_any_device_is_a_night_and_no_stall_until_it_lasts_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = course_that_nobody_ends(tmp_path, monkeypatch, alone_s=15.0)
    for member in course.members.values():
        member.wanted = False
    run(course)
    assert course.outcome == "no device was there for 15 emulated seconds"


def test_a_fleet_whose_agents_all_ended_for_good_is_over_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = course_that_nobody_ends(tmp_path, monkeypatch)
    for member in course.members.values():
        member.given_up = True
    run(course)
    assert course.outcome == "no device is left: every agent ended for good, as its log says"


def test_what_ends_a_fleet_that_is_being_raised_ends_it_once(tmp_path: Path) -> None:
    async def told() -> AsyncIterator[Event]:
        yield Finished("rounds")

    async def raised() -> None:
        with pytest.raises(UnreachableError, match="is starting still"):
            await course.answer({"do": "kill", "devices": ["light"]})
        for outcome in ("interrupted", "interrupted again"):
            course.told_to_end(outcome)

    aborted: list[str] = []
    course = course_of(tmp_path, FakeEngine(), told())
    course.abort = lambda: aborted.append("now")
    asyncio.run(raised())
    assert (course.outcome, aborted) == ("interrupted", ["now"])


@pytest.mark.parametrize("wrong", [{"devices": "light"}, {"devices": [["light"]]}, {"devices": 1}, {"devices": []}])
def test_what_names_no_device_of_the_fleet_is_refused(tmp_path: Path, wrong: dict[str, object]) -> None:
    async def told() -> AsyncIterator[Event]:
        yield Finished("rounds")

    course = course_of(tmp_path, FakeEngine(), told())
    course.began = 1.0
    with pytest.raises(ConfigurationError, match="which has pi4-1, pi4-2, light"):
        asyncio.run(course.answer({"do": "cut", **wrong}))
    for factor in (0, -1, 2, float("nan"), "half"):
        with pytest.raises(ConfigurationError, match="factor"):
            asyncio.run(course.answer({"do": "throttle", "devices": ["light"], "factor": factor}))
