"""Two agents under one name are noticed and told apart from restarts, replaced disks and messages that came late."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.doubles import QUIET_S, RETURNS, Doubles
from coordinator.reports import Reports
from protocol.messages import TWO_AGENTS, Hello, Welcome
from tests.coordinator.simulation import Simulation


def alternating(doubles: Doubles, times: int, now: float = 0.0) -> list[bool]:
    """Two agents greet by turns, as they do when a broker throws one out for the other."""
    said = []
    for i in range(times):
        for instance in (11, 22):
            said.append(doubles.hear("dev", instance, i + 1, now + i) is not None)
    return said


def test_two_that_greet_by_turns_are_noticed_after_a_few_returns() -> None:
    said = alternating(Doubles(), 4)
    assert said.index(True) == RETURNS + 1
    assert all(said[RETURNS + 1 :])


def test_what_is_wrong_names_the_device_and_the_remedy() -> None:
    doubles = Doubles()
    alternating(doubles, 4)
    wrong = doubles.hear("dev", 11, 9, 5.0)
    assert wrong is not None
    assert wrong.reason == TWO_AGENTS
    assert "'dev'" in wrong.detail
    assert "give each a name and a state folder of its own" in wrong.detail


@given(st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_an_agent_that_starts_again_and_again_is_none_however_often_it_greets(hellos: list[int]) -> None:
    doubles = Doubles()
    for start, count in enumerate(hellos):
        for sequence in range(1, count + 1):
            assert doubles.hear("dev", 1000 + start, sequence, float(start)) is None


def test_a_replaced_disk_whose_old_agent_is_silent_is_none() -> None:
    doubles = Doubles()
    for sequence in range(1, 50):
        assert doubles.hear("dev", 11, sequence, sequence * 200.0) is None
    for sequence in range(1, 50):
        assert doubles.hear("dev", 22, sequence, 1e4 + sequence * 200.0) is None


def test_messages_of_a_dead_agent_that_come_late_or_twice_are_none() -> None:
    doubles = Doubles()
    for sequence in (1, 2, 3):
        doubles.hear("dev", 11, sequence, 0.0)
    for now in range(20):
        assert doubles.hear("dev", 22, now + 1, float(now)) is None
        assert doubles.hear("dev", 11, 3, float(now)) is None
    assert doubles.hear("dev", 11, 4, 30.0) is None, "one that had been under way"


def test_the_alarm_ends_when_one_of_the_two_is_silent() -> None:
    doubles = Doubles()
    assert alternating(doubles, 4)[-1]
    assert doubles.hear("dev", 22, 10, 4.0 + QUIET_S) is None


def test_devices_are_told_apart_and_older_agents_say_nothing() -> None:
    doubles = Doubles()
    for i in range(10):
        assert doubles.hear(f"dev-{i % 2}", 11 + i % 2, i, 0.0) is None
        assert doubles.hear("old", None, i, 0.0) is None


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Simulation]:
    made = Simulation.make(tmp_path, devices=3, count=2)
    made.wall_s = time.time()
    yield made
    made.store.close()


def test_the_coordinator_says_so_in_its_log_its_counts_and_to_the_agents_and_goes_on(
    fleet: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    agent = fleet.agents["dev-1"]
    for _ in range(4):
        for instance in (11, 22):
            agent.instance = instance
            agent.hello()
            fleet.turn()
    fleet.finish()
    assert "rejected device=dev-1 round=0 two-agents: two agents call themselves 'dev-1'" in caplog.text
    warnings = [body.warning for body in agent.heard if isinstance(body, Welcome)]
    assert warnings[0] is None
    assert warnings[-1] == TWO_AGENTS
    others = [body.warning for body in fleet.agents["dev-0"].heard if isinstance(body, Welcome)]
    assert set(others) == {None}
    assert {e.device for e in fleet.rejected} == {"dev-1"}
    assert len(fleet.committed) == 2
    fleet.coordinator.stop()
    reports = Reports(fleet.folder / "state")
    with reports:
        assert {row.device: row.warning for row in reports.devices()} == {
            "dev-0": None,
            "dev-1": TWO_AGENTS,
            "dev-2": None,
        }
        assert reports.status(fleet.settings.rounds).doubled == "dev-1"


def test_what_is_over_is_no_longer_shown(fleet: Simulation) -> None:
    agent = fleet.agents["dev-1"]
    for _ in range(4):
        for instance in (11, 22):
            agent.instance = instance
            agent.hello()
            fleet.turn()
    assert fleet.coordinator._fleet["dev-1"].doubled_s is not None
    fleet.now += QUIET_S
    agent.hello()
    fleet.until(lambda: fleet.coordinator._fleet["dev-1"].doubled_s is None)
    fleet.coordinator.stop()
    with Reports(fleet.folder / "state") as reports:
        assert {row.warning for row in reports.devices()} == {None}
        assert reports.status(fleet.settings.rounds).doubled == "none"


def test_a_hello_without_an_instance_is_answered_as_ever(fleet: Simulation) -> None:
    agent = fleet.agents["dev-0"]
    agent.heard.clear()
    agent.send(Hello("older", "auto"))
    fleet.until(lambda: any(isinstance(body, Welcome) for body in agent.heard))
