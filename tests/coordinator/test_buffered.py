"""Buffered rounds: a version every so many updates, whatever version they started from; nobody waits for anybody."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.messages import Task, Withdraw
from tests.audit import refold
from tests.coordinator.simulation import Simulation

FAST, SLOW_S = ("dev-0", "dev-1", "dev-2", "dev-3"), 100.0
BUFFER = 2


def fleet_of(folder: Path, devices: int = 5, **rounds: Any) -> Simulation:
    """Devices that take 10 s, and one, the last, that takes ten times as long."""
    wanted: dict[str, Any] = {"count": 10, "deadline_s": 400.0, "mode": "buffered", "buffer": BUFFER} | rounds
    fleet = Simulation.make(folder, 0, **wanted)
    at_once = replace(fleet.settings.rounds, devices=devices)
    fleet.kill()
    fleet.settings = replace(fleet.settings, rounds=at_once)
    fleet.start()
    for i in range(devices):
        fleet.add(f"dev-{i}").train_s = SLOW_S if i == devices - 1 else 10.0
    return fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Simulation]:
    made = fleet_of(tmp_path)
    yield made
    made.store.close()


def rounds_of(fleet: Simulation, device: str) -> list[int]:
    return [task.round for task in fleet.agents[device].heard if isinstance(task, Task)]


def test_versions_come_at_the_pace_of_the_buffer_and_a_slow_device_holds_nobody_up(fleet: Simulation) -> None:
    started = fleet.now
    fleet.finish()
    assert [event.devices for event in fleet.committed] == [BUFFER] * 10
    # Four devices bring an update each ten seconds, so two versions; the eleventh of a second are messages.
    assert fleet.now - started < 10 * 10.0 / 2 * 1.3
    assert len(set(rounds_of(fleet, "dev-4"))) == 1, "who is at work is left alone"
    assert not any(isinstance(b, Withdraw) for d in FAST for b in fleet.agents[d].heard[:-1])
    assert refold(fleet.folder / "state", fleet.bundle) == 10


def test_who_delivered_works_on_as_soon_as_there_is_a_newer_version(fleet: Simulation) -> None:
    fleet.finish()
    for device in FAST:
        numbers = rounds_of(fleet, device)
        assert numbers == sorted(numbers)
        assert len(set(numbers)) >= 4, "it was never idle for long"
        assert fleet.agents[device].updates >= len(set(numbers)) - 1, "but for the last, nothing was begun in vain"


def test_a_late_device_is_asked_at_once_if_it_has_not_had_the_versions_task(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, count=30)
    slow = fleet.agents["dev-4"]
    fleet.until(lambda: bool(slow.settled))
    fleet.until(lambda: slow.task is not None, turns=20)
    assert slow.task is not None
    assert slow.task.round in (fleet.committed[-1].round, fleet.committed[-1].round + 1)
    fleet.store.close()


def test_the_fold_is_the_discounted_sum_over_whole_weights_by_hand(fleet: Simulation) -> None:
    fleet.until(lambda: len(fleet.committed) >= 6)
    rows = fleet.store._sql.execute(
        "SELECT round, weight, discount FROM updates WHERE fold = 6 ORDER BY round, device"
    ).fetchall()
    assert [row[2] for row in rows] == [(1 + 6 - row[0]) ** -0.5 for row in rows]
    assert len(rows) == BUFFER
    assert any(row[2] < 1.0 for row in rows), "half of the devices are always a version behind"
    fleet.finish()


def test_a_kill_and_a_restart_go_on_with_everybody_at_work(fleet: Simulation) -> None:
    fleet.until(lambda: len(fleet.committed) >= 3)
    fleet.kill()
    fleet.start()
    fleet.finish()
    assert refold(fleet.folder / "state", fleet.bundle) == 10
    assert {receipt.verdict for agent in fleet.agents.values() for receipt in agent.settled.values()} == {"accepted"}


def test_when_nothing_comes_for_a_deadline_others_are_asked(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, devices=2, deadline_s=40.0, count=2)
    for agent in fleet.agents.values():
        agent.silent = True
    fleet.until(lambda: fleet.now > 120.0)
    fleet.add("dev-8")
    fleet.add("dev-9")
    fleet.until(lambda: fleet.now > 135.0)
    assert not rounds_of(fleet, "dev-8"), "two work at once"
    fleet.finish()
    assert rounds_of(fleet, "dev-8")
    assert rounds_of(fleet, "dev-9")
    fleet.store.close()


def test_a_device_that_is_gone_keeps_its_place_for_a_deadline_only(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, devices=3, deadline_s=60.0, count=20)
    fleet.until(lambda: len(fleet.committed) == 1)
    fleet.broker.cut("dev-2")
    waiting = fleet.add("dev-9")
    fleet.until(lambda: waiting.task is not None)
    assert "dev-2" in fleet.coordinator._course.carried
    fleet.finish()
    fleet.store.close()
