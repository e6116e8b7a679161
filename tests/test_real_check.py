"""A device of a real fleet over mTLS is checked: its agent is not thrown out; where none runs the broker is asked."""

from pathlib import Path

import pytest

from tests.agent.outbox_states import checks, edge_agent
from tests.conftest import require_broker
from tests.real_fleet import RealFleet

pytestmark = pytest.mark.real


def test_a_running_agent_is_left_alone_and_in_place_of_a_stopped_one_the_broker_is_asked(tmp_path: Path) -> None:
    require_broker("mosquitto")
    fleet = RealFleet(tmp_path, "mosquitto", 10_000, devices=1, enrols=True)
    try:
        fleet.start()
        fleet.until(lambda: len(fleet.committed()) >= 1)
        config = str(tmp_path / "device-00" / "agent.toml")
        fleet.until(lambda: edge_agent("status", "--config", config).returncode == 0)
        running = edge_agent("check", "--config", config, "--json")
        assert (running.returncode, checks(running)["broker"]["asked"]) == (0, "agent"), running.stdout
        assert "disconnected" not in fleet.agents["device-00"].log.read_text()
        fleet.kill(fleet.agents["device-00"])
        alone = edge_agent("check", "--config", config, "--json")
        assert (alone.returncode, checks(alone)["broker"]["asked"]) == (0, "broker"), alone.stdout
        assert checks(alone)["broker"]["said"].endswith("connects, reads and writes its own topics")
    finally:
        fleet.stop()
