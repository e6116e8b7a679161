"""Fleets without a hub at the real coordinator: epochs, rounds of collection, kills, and who leaves and comes."""

from pathlib import Path

import numpy as np
import pytest

from coordinator.gossip_settings import GossipSettings
from coordinator.reports import Reports
from coordinator.settings import RoundSettings
from protocol.errors import Rejection
from protocol.messages import DeviceState, Task
from tests.coordinator.gossip_simulation import GossipSimulation

CONTROLLED = GossipSettings("ring", codec="all/float16", gamma=0.5, exchanges=10, target=0.2, first_phase=100)


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


def epochs(fleet: GossipSimulation, device: str) -> list[int]:
    return sorted({membership.epoch for membership in fleet.device(device).told})


def ring_of(*names: str) -> dict[str, tuple[str, ...]]:
    near = {name: {names[i - 1], names[(i + 1) % len(names)]} for i, name in enumerate(names)}
    return {name: tuple(sorted(others)) for name, others in near.items()}


def test_a_device_that_joins_is_waited_for_once_it_has_begun_and_then_counts(tmp_path: Path) -> None:
    fleet = GossipSimulation.of(tmp_path, count=6)
    fleet.until(lambda: len(fleet.committed) == 1)
    fleet.add("new-1")
    fleet.finish()
    assert [event.devices for event in fleet.committed][-1] == 5
    (told,) = {membership for membership in fleet.device("new-1").told if membership.newcomer}
    assert told.begun == fleet.device("dev-0").told[-1].after > 0
    models = [device.sent_models[6] for device in fleet.devices]
    np.testing.assert_allclose(fleet.parameters(), np.mean(models, axis=0), atol=1e-6)
    # At the end nobody hears more than its neighbours.
    assert fleet.allowed[-1] == ring_of("dev-0", "dev-1", "dev-2", "dev-3", "new-1")


def test_while_an_epoch_ends_devices_hear_the_neighbours_of_both(tmp_path: Path) -> None:
    fleet = GossipSimulation.of(tmp_path, count=6)
    fleet.until(lambda: len(fleet.committed) == 1)
    fleet.add("ada-1")
    fleet.finish()
    old, new = ring_of("dev-0", "dev-1", "dev-2", "dev-3"), ring_of("ada-1", "dev-0", "dev-1", "dev-2", "dev-3")
    both = {name: tuple(sorted({*near, *old.get(name, ())})) for name, near in new.items()}
    assert fleet.allowed == [old, both, new]


def test_a_device_that_says_goodbye_is_not_waited_for_and_comes_back_with_its_model(tmp_path: Path) -> None:
    fleet = GossipSimulation.of(tmp_path, count=12)
    fleet.until(lambda: len(fleet.committed) == 1)
    gone = fleet.device("dev-2")
    assert gone.transport is not None
    gone.send(DeviceState("gone"), "state", retain=True)
    gone.transport.will = None
    fleet.broker.cut("dev-2")
    fleet.until(lambda: len(fleet.committed) == 4)
    assert fleet.committed[2].devices == 3
    gone.restart()
    fleet.finish()
    assert fleet.committed[-1].devices == 4
    assert [membership.newcomer for membership in gone.told[:2]] == [True, False]


def test_a_member_that_is_lost_before_the_epoch_could_end_does_not_hold_it_up(tmp_path: Path) -> None:
    fleet = GossipSimulation.of(tmp_path, count=8)
    fleet.until(lambda: len(fleet.device("dev-0").done) >= 3)
    # The newcomer is told of, and one of those who are to complete the epoch is lost at once.
    fleet.add("new-1")
    fleet.until(lambda: bool(fleet.device("new-1").told))
    fleet.broker.cut("dev-1")
    del fleet.agents["dev-1"]
    fleet.finish()
    assert fleet.committed[-1].devices == 4
    last = fleet.device("dev-0").told[-1]
    assert last.after == 0
    assert "dev-1" not in last.weights
    assert len({(device.told[-1].epoch, device.told[-1].begun) for device in fleet.devices}) == 1


def test_a_device_whose_disk_was_replaced_is_a_newcomer(tmp_path: Path) -> None:
    fleet = GossipSimulation.of(tmp_path, count=6)
    fleet.until(lambda: len(fleet.committed) == 1)
    device = fleet.device("dev-3")
    device.card.node = None
    device.told.clear()
    device.settled.clear()
    device.restart()
    fleet.finish()
    assert device.told[0].newcomer
    assert not any(membership.newcomer for membership in fleet.device("dev-0").told[1:])
    assert fleet.committed[-1].devices == 4


def test_a_device_that_hangs_is_left_out_and_taken_in_again_when_it_speaks(tmp_path: Path) -> None:
    fleet = GossipSimulation.of(tmp_path, count=8)
    fleet.until(lambda: len(fleet.committed) == 1)
    hung = fleet.device("dev-1")
    assert hung.transport is not None
    events = hung.transport.events
    work, hung.work = hung.work, lambda now: events.clear()  # type: ignore[method-assign]
    fleet.until(lambda: any("dev-1" not in allowed for allowed in fleet.allowed))
    fleet.until(lambda: len(fleet.committed) == 3)
    assert fleet.committed[-1].devices == 3
    hung.work = work  # type: ignore[method-assign]
    assert hung.talk is not None
    hung.talk.report()
    fleet.finish()
    assert fleet.committed[-1].devices == 4


def test_who_is_revoked_has_left(tmp_path: Path) -> None:
    fleet = GossipSimulation.of(tmp_path, count=6)
    fleet.until(lambda: len(fleet.committed) == 1)
    revoked = Rejection("revoked", "this device's identity was revoked")
    room = fleet.coordinator._council
    assert room is not None
    room._admit = lambda device: revoked if device == "dev-0" else None
    fleet.coordinator._admit = room._admit
    fleet.finish()
    assert fleet.committed[-1].devices == 3
    assert "dev-0" not in fleet.allowed[-1]


def test_control_asks_for_more_gossip_and_reports_show_how_far_apart_devices_are(tmp_path: Path) -> None:
    fleet = GossipSimulation.of(tmp_path, gossip=CONTROLLED)
    fleet.finish()
    assert any(effort.gossip_rounds > 1 for effort in fleet.device("dev-0").efforts)
    with Reports(tmp_path / "state") as reports:
        rows = [row for row in reports.rounds() if row.round]
        status = reports.status(RoundSettings(3, 4, 60.0))
    assert all(row.distance is not None and row.distance > 0 for row in rows)
    assert (status.epoch, status.members) == (1, 4)
    shares = sorted((sum(device.encode()) % 10) / 10 for device in fleet.agents)
    assert rows[-1].own_worst == status.own_worst == shares[0]
    assert rows[-1].own_mean == pytest.approx(sum(shares) / 4)
    assert rows[-1].device_mean is None


def test_gamma_is_tuned_for_the_graph_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fleet = GossipSimulation.of(tmp_path, gossip=GossipSettings("full", codec="all/float32", exchanges=2), count=1)
        fleet.finish()
    (gamma,) = {membership.gamma for device in fleet.devices for membership in device.told}
    assert gamma == 1.0
    assert "gamma codec=all/float32 devices=4 gamma=1 " in caplog.text
