"""What coordinator and agents of an emulated fleet are told, as they themselves read it."""

import tomllib
from pathlib import Path

from coordinator import settings as coordinator_settings
from devices.conductor.fleet_settings import agent_toml, coordinator_toml
from devices.datasets import PROJECT_ROOT
from devices.engines.engine import Inside
from devices.fleet.clock import Clock
from devices.fleet.fleet_file import load_fleet
from edge_agent import settings as agent_settings
from tests.conductor.plans import plan_of
from tests.tiny import write_bundle

_OVER = """
[coordinator.rounds]
devices = 3
deadline_s = 50.0

[coordinator.training]
local_epochs = 2

[coordinator.training.optimizer]
momentum = 0.5
"""


def test_the_coordinator_takes_the_presets_settings_with_the_plans_over_them_and_its_times_at_our_clock(
    tmp_path: Path,
) -> None:
    write_bundle(tmp_path / "bundle")
    path = tmp_path / "coordinator.toml"
    path.write_text(coordinator_toml(plan_of(tmp_path, _OVER), Clock(2.0), 1883))
    settings = coordinator_settings.load(path)
    assert settings.fleet == "small"
    assert (settings.rounds.count, settings.rounds.devices, settings.rounds.least) == (4, 3, 1)
    assert settings.rounds.deadline_s == 100.0
    assert (settings.training.local_epochs, settings.training.optimizer.momentum) == (2, 0.5)
    assert settings.training.batch_size == 16


def test_the_fleet_without_a_hub_among_the_examples_is_one_that_a_coordinator_takes(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle")
    path = tmp_path / "coordinator.toml"
    plan = load_fleet(PROJECT_ROOT / "examples" / "gossip-fleet.toml")
    path.write_text(coordinator_toml(plan, Clock(2.0), 1883))
    settings = coordinator_settings.load(path)
    assert (settings.gossip.topology, settings.rounds.devices) == ("ring", 4)
    assert settings.gossip.dead_after_s == 600.0


def test_a_round_of_which_the_plan_says_nothing_asks_all_and_is_content_with_half(tmp_path: Path) -> None:
    said = tomllib.loads(coordinator_toml(plan_of(tmp_path), Clock(1.0), 1883))
    assert (said["rounds"]["devices"], said["rounds"]["minimum"]) == (3, 1)


def test_an_agent_finds_its_folders_where_the_device_has_them(tmp_path: Path) -> None:
    inside = Inside(Path("/etc/edge-agent"), Path("/var/lib/edge-agent"), Path("/data"))
    plan = plan_of(tmp_path)
    path = tmp_path / "agent.toml"
    path.write_text(agent_toml(plan, plan.devices[0], inside, "mqtts://127.0.0.1:8883", Clock(2.0)))
    settings = agent_settings.load(path)
    assert (settings.device, settings.fleet) == ("pi4-1", "small")
    assert (str(settings.state), str(settings.data.path)) == ("/var/lib/edge-agent", "/data/shard.npz")
    assert settings.broker.keepalive_s == 60
