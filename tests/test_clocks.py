"""Wall clocks that jump by years, or begin in 1970, under real processes: nothing expires, nothing is lost."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.audit import audit
from tests.conftest import require_broker
from tests.real_fleet import RealFleet

pytestmark = pytest.mark.real

YEAR_S = 365 * 86400


class Clock:
    """The wall clock of one process or more, off by so many seconds, which may change at any time."""

    def __init__(self, file: Path, offset_s: float = 0.0) -> None:
        self.file = file
        self.set(offset_s)

    def set(self, offset_s: float) -> None:
        # In one step, for others read it all the time.
        new = self.file.with_suffix(".new")
        new.write_text(str(offset_s))
        new.rename(self.file)

    @property
    def wrapping(self) -> tuple[str, ...]:
        return (sys.executable, "-m", "tests.clocked", str(self.file))


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RealFleet]:
    require_broker("mosquitto")
    fleet = RealFleet(tmp_path, "mosquitto", 10_000, devices=2)
    yield fleet
    fleet.stop()


def rounds_go_on(fleet: RealFleet) -> None:
    reached = len(fleet.committed()) + 3
    fleet.until(lambda: len(fleet.committed()) >= reached)


def test_clocks_that_jump_by_years_in_both_directions_change_nothing(fleet: RealFleet) -> None:
    clocks = {part: Clock(fleet.folder / f"clock-{part}") for part in ("coordinator", "device-00", "device-01")}
    for part, clock in clocks.items():
        fleet.wrapped = clock.wrapping
        if part == "coordinator":
            fleet.start_coordinator()
        else:
            fleet.start_agent(part)
    rounds_go_on(fleet)
    for part, offset in (
        ("coordinator", 10 * YEAR_S),
        ("device-00", -30 * YEAR_S),
        ("coordinator", -20 * YEAR_S),
        ("device-00", 50 * YEAR_S),
        ("device-01", -3600.0),
        ("coordinator", 0.0),
    ):
        clocks[part].set(offset)
        rounds_go_on(fleet)
    log = fleet.agents["device-00"].log.read_text()
    assert "1996-" in log, "the clock did jump"
    finish(fleet)


def test_a_fleet_that_boots_in_1970_trains_and_goes_on_when_its_clocks_are_set(fleet: RealFleet) -> None:
    clock = Clock(fleet.folder / "clock-all", -time.time())
    fleet.wrapped = clock.wrapping
    fleet.start()
    rounds_go_on(fleet)
    assert "1970-" in fleet.agents["device-00"].log.read_text()
    clock.set(0.0)
    rounds_go_on(fleet)
    # And the other way round: a coordinator that restarts without a clock, on what it wrote with one.
    clock.set(-time.time())
    finish(fleet)


def finish(fleet: RealFleet) -> None:
    fleet.end_after(2)
    fleet.finish()
    fleet.settle()
    assert audit(fleet.folder) == fleet.version()
