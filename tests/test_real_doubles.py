"""Real processes under one name at a real broker: two agents of one device, two coordinators of one run."""

import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.broker import Broker
from coordinator.rivals import TIE_S
from protocol.mqtt import parse_url
from tests.audit import audit
from tests.real_fleet import RealFleet

pytestmark = pytest.mark.real


@pytest.fixture
def fleet(tmp_path: Path, mosquitto: Broker) -> Iterator[RealFleet]:
    made = RealFleet(tmp_path, mosquitto.url, 10_000, devices=1, port=parse_url(mosquitto.url).port)
    yield made
    made.stop()


def log(fleet: RealFleet, name: str) -> str:
    path = fleet.folder / "logs" / f"{name}.log"
    return path.read_text() if path.exists() else ""


def test_two_agents_on_copies_of_one_card_are_said_to_be_two_by_everyone_and_nothing_is_lost(fleet: RealFleet) -> None:
    fleet.start()
    fleet.until(lambda: len(fleet.committed()) >= 1)
    fleet.kill(fleet.agents["device-00"])
    shutil.copytree(fleet.folder / "device-00", fleet.folder / "card")
    fleet.start_agent("device-00")
    copied = (sys.executable, "-m", "edge_agent", "run", "--config", str(fleet.folder / "card" / "agent.toml"))
    fleet.start_agent_elsewhere("card", copied)
    said = "another agent also calls itself 'device-00'"
    fleet.until(lambda: said in log(fleet, "device-00") and said in log(fleet, "card"))
    assert "two-agents: two agents call themselves 'device-00'" in log(fleet, "coordinator")
    fleet.until(lambda: fleet.ask("status")["doubled"] == "device-00")
    assert fleet.ask("devices")["devices"][0]["warning"] == "two-agents"
    fleet.kill(fleet.agents.pop("card"))
    shutil.rmtree(fleet.folder / "card")
    fleet.end_after(1)
    fleet.finish()
    fleet.settle()


def test_a_coordinator_on_a_copy_of_a_running_ones_folder_ends_and_takes_nothing(fleet: RealFleet) -> None:
    fleet.start()
    fleet.until(lambda: len(fleet.committed()) >= 1)
    assert fleet.coordinator is not None
    fleet.kill(fleet.coordinator)
    copy = fleet.folder / "copy"
    copy.mkdir()
    shutil.copytree(fleet.folder / "coordinator", copy / "coordinator")
    for name in ("bundle", "test.npz", "coordinator.toml"):
        (copy / name).symlink_to(fleet.folder / name)
    shutil.copy(fleet.folder / "coordinator.toml", copy / "settings.toml")
    rounds = len(fleet.committed())
    fleet.start_coordinator()
    fleet.until(lambda: len(fleet.committed()) > rounds)
    # Of two that begin at the same time either may be the first.
    began = time.monotonic()
    fleet.until(lambda: time.monotonic() > began + 2 * TIE_S)
    second = (sys.executable, "-m", "coordinator", "run", "--config", str(copy / "settings.toml"), "--json")
    fleet.start_agent_elsewhere("second", second)
    ended = fleet.agents.pop("second")
    fleet.until(lambda: ended.exit_code is not None)
    assert ended.exit_code == 3, log(fleet, "second")
    assert "it was started from a copy of this state folder; stop it" in log(fleet, "second")
    assert "round-committed" not in log(fleet, "second")
    assert "accepted device=" not in log(fleet, "second")
    assert fleet.coordinator.exit_code is None
    fleet.end_after(1)
    fleet.finish()
    fleet.settle()
    assert audit(fleet.folder) == fleet.version()
