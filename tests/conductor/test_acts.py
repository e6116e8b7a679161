"""What the conductor does to devices, on an engine in memory: restarts as a service has them, faults, what is said."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from rich.console import Console

from devices.conductor.acts import Acts
from devices.conductor.members import Member
from devices.conductor.telling import Telling
from devices.engines.engine import EngineError, Limits, Start
from devices.fleet.board import Board, Power
from devices.fleet.clock import Clock
from devices.fleet.plan import Device
from devices.links import Profile
from tests.conductor.fake_engine import FakeEngine

# An emulated second is a millisecond: RestartSec's ten are soon over.
_CLOCK = Clock(0.001)


def board() -> Board:
    return Board("small", "A small board", "amd64", "a core", 1, 10.0, 256, 64, 10.0, Power(1.0, 2.0), Profile())


class Rig:
    """One device that runs."""

    def __init__(self, folder: Path, limits: Limits | None = None) -> None:
        self.engine = FakeEngine()
        self.folder = folder
        (folder / "state").mkdir()
        self.start = Start(
            "fleet", "one", "amd64", limits or Limits(0.5, 256, 64), folder / "etc", folder / "state", folder / "data",
            clock=folder / "clock",
        )  # fmt: skip
        self.telling = Telling(Console(quiet=True), 3)
        self.acts = Acts("fleet", self.telling, _CLOCK)
        self.member = Member(Device("one", board()), self.engine, self.start)
        self.engine.prepare(self.start)
        self.engine.start(self.start, ("edge-agent", "run"))
        self.member.wanted = True

    def said(self) -> list[str]:
        return [happening.what for happening in self.telling.happenings]

    def starts(self) -> int:
        return self.engine.calls.count(("start", "one"))

    def do(self, *steps: Callable[[], Awaitable[object]]) -> None:
        async def all_steps() -> None:
            for step in steps:
                await step()

        asyncio.run(all_steps())
        self.acts.hands.shutdown()

    async def look(self) -> None:
        await self.acts.look(self.member)

    async def serve_until_started(self) -> None:
        before = self.starts()
        while self.starts() == before:
            await self.acts.serve(self.member)
            await asyncio.sleep(0)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_a_killed_agent_is_started_again_by_its_service_and_counted(rig: Rig) -> None:
    rig.do(lambda: rig.acts.kill(rig.member), rig.look, rig.look, rig.serve_until_started, rig.look)
    assert rig.said() == ["kill", "exit", "start"]
    assert rig.telling.happenings[1].detail == "killed by signal 9"
    assert (rig.member.restarts, rig.member.presence) == (1, "on")
    assert [span.presence for span in rig.member.spans] == ["off", "on"]


def test_an_agent_waits_the_services_ten_seconds_before_it_is_started_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.acts.clock = Clock(1000.0)
    rig.do(lambda: rig.acts.kill(rig.member), rig.look, lambda: rig.acts.serve(rig.member))
    assert rig.starts() == 1
    assert rig.member.restarts == 0


@pytest.mark.parametrize("code", [3, 5])
def test_an_agent_that_would_only_say_the_same_again_is_left_ended(rig: Rig, code: int) -> None:
    rig.engine.ends("fleet", "one", code)
    rig.do(rig.look, lambda: rig.acts.serve(rig.member))
    assert rig.member.given_up
    assert "starts it no more" in rig.telling.happenings[0].detail
    assert rig.starts() == 1


def test_an_end_for_want_of_memory_is_an_outcome_and_the_agent_goes_on(rig: Rig) -> None:
    rig.engine.ends("fleet", "one", 137, out_of_memory=True)
    rig.do(rig.look, rig.look, rig.serve_until_started, rig.look)
    assert rig.said() == ["out-of-memory", "exit", "start"]
    assert (rig.member.out_of_memory, rig.member.restarts) == (1, 1)


def test_an_agent_that_runs_out_of_memory_at_each_start_is_counted_each_time(rig: Rig) -> None:
    async def ends() -> None:
        rig.engine.ends("fleet", "one", 137, out_of_memory=True)

    rig.do(ends, rig.look, rig.serve_until_started, ends, rig.look)
    assert rig.said() == ["out-of-memory", "exit", "start", "out-of-memory", "exit"]
    assert rig.member.out_of_memory == 2


def test_a_device_without_power_is_not_started_by_its_service(rig: Rig) -> None:
    rig.do(
        lambda: rig.acts.power_off(rig.member, "power-cut", abrupt=True),
        rig.look,
        lambda: rig.acts.serve(rig.member),
        lambda: rig.acts.power_on(rig.member, "power-cut ends"),
        rig.look,
    )
    assert rig.said() == ["power-cut", "power-cut ends"]
    assert ("cut_power", "one") in rig.engine.calls
    assert (rig.member.restarts, rig.member.presence, rig.starts()) == (0, "on", 2)


def test_a_throttle_leaves_a_share_of_what_calibration_gave_and_gives_it_back(rig: Rig) -> None:
    rig.do(lambda: rig.acts.throttle(rig.member, 0.5), lambda: rig.acts.throttle(rig.member, 1.0))
    assert [call for call in rig.engine.calls if call[0] == "throttle"] == [
        ("throttle", "one", "0.25"),
        ("throttle", "one", "0.5"),
    ]
    assert rig.said() == ["throttle", "throttle ends"]


def test_what_a_plain_process_cannot_suffer_is_refused_with_the_reason(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Limits())
    with pytest.raises(EngineError, match="no limit of its processor"):
        rig.do(lambda: rig.acts.throttle(rig.member, 0.5))
    (tmp_path / "again").mkdir()
    rig = Rig(tmp_path / "again", Limits())
    with pytest.raises(EngineError, match="no disk of its own"):
        rig.do(lambda: rig.acts.fill(rig.member))


def test_a_clock_jumps_from_where_it_was(rig: Rig) -> None:
    rig.acts.jump(rig.member, 60.0)
    first = (rig.folder / "clock").read_text()
    rig.acts.jump(rig.member, -3600.0)
    assert (float(first), float((rig.folder / "clock").read_text())) == (60.0, -3540.0)


def test_processor_time_and_peak_are_those_of_all_starts(rig: Rig) -> None:
    rig.do(rig.look, lambda: rig.acts.kill(rig.member), rig.look, rig.serve_until_started, rig.look)
    assert rig.member.cpu_s == 2.0
    assert rig.member.peak_mib == 50.0
