"""Fleets without a hub at the real coordinator: epochs, rounds of collection, kills, and who leaves and comes."""

from pathlib import Path

import numpy as np
import pytest

from protocol.messages import Task
from tests.coordinator.gossip_simulation import GossipSimulation


def test_a_version_is_the_mean_of_the_devices_own_models_after_its_exchanges(tmp_path: Path) -> None:
    fleet = GossipSimulation.of(tmp_path)
    fleet.finish()
    assert [event.devices for event in fleet.committed] == [4, 4, 4]
    tasks = [body for body in fleet.device("dev-0").heard if isinstance(body, Task)]
    assert {task.round: task.until for task in tasks} == {1: 5, 2: 10, 3: 15}
    models = [device.sent_models[3] for device in fleet.devices]
    np.testing.assert_allclose(fleet.parameters(), np.mean(models, axis=0), atol=1e-6)
    completed = {device.device: [c.after for c in device.done if c.number == 15] for device in fleet.devices}
    for device in fleet.devices:
        np.testing.assert_array_equal(completed[device.device][0], device.sent_models[3])
    assert np.std([model[0] for model in models]) > 0


def test_an_agent_that_knows_no_gossip_is_not_asked_and_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = GossipSimulation.of(tmp_path, devices=3)
    old = fleet.add("old-1")
    old.skills = ()
    with caplog.at_level("WARNING"):
        fleet.finish()
    assert not any(isinstance(body, Task) for body in old.heard)
    assert "old-1's agent (test) does not know gossip (gossip); upgrade it" in caplog.text


def test_a_coordinator_that_is_killed_goes_on_with_the_same_epochs_to_the_same_bits(tmp_path: Path) -> None:
    undisturbed = GossipSimulation.of(tmp_path / "a")
    undisturbed.finish()
    fleet = GossipSimulation.of(tmp_path / "b")
    fleet.until(lambda: len(fleet.device("dev-0").done) >= 7)
    fleet.kill()
    # Devices need no hub between two collections.
    for _ in range(200):
        for device in fleet.devices:
            device.work(fleet.now)
        fleet.now += 0.1
    assert {len(device.done) for device in fleet.devices} == {10}
    fleet.start()
    fleet.finish()
    assert fleet.model() == undisturbed.model()
    assert {membership.epoch for device in fleet.devices for membership in device.told} == {1}
