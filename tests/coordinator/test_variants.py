"""Rounds of devices that train different variants: real agents and fake ones, over an in-memory broker."""

from pathlib import Path

import numpy as np
import pytest

from coordinator.reports import Reports
from coordinator.settings import LimitSettings
from coordinator.store import Store
from edge_agent.agent import Agent
from edge_agent.data import DataSettings
from edge_agent.link import last_will
from edge_agent.runtimes.engine import Vector
from edge_agent.settings import AgentSettings, BrokerSettings, TrainingSettings
from edge_agent.store import AgentStore
from protocol.errors import ConfigurationError
from protocol.transport import MemoryTransport
from tests import tiny
from tests.coordinator.old_stores import age
from tests.coordinator.simulation import BUFFERS, HEAD, TOPICS, Simulation, examine, make_settings

PARAMETERS = 20
BODY = slice(0, PARAMETERS - HEAD)
LAST = slice(PARAMETERS - HEAD, PARAMETERS)
RUNNING = slice(PARAMETERS, PARAMETERS + BUFFERS)


def mixed(folder: Path, *partial: str, count: int = 3) -> Simulation:
    """Three devices, of which these train the head alone."""
    fleet = Simulation.make(folder, count=count)
    for device in partial:
        fleet.agents[device].variant = "head"
    return fleet


def model_of(fleet: Simulation) -> Vector:
    return np.frombuffer(fleet.model(), "<f4")


def test_what_nobody_trained_stays_and_the_rest_moves(tmp_path: Path) -> None:
    fleet = mixed(tmp_path, "dev-0", "dev-1", "dev-2")
    before = model_of(fleet)
    fleet.finish()
    after = model_of(fleet)
    assert after[BODY].tobytes() == before[BODY].tobytes()
    assert after[RUNNING].tobytes() == before[RUNNING].tobytes()
    assert (after[LAST] != before[LAST]).all()
    fleet.store.close()


def test_one_who_trains_everything_counts_alone_where_the_others_train_nothing(tmp_path: Path) -> None:
    alone = Simulation.make(tmp_path / "alone", devices=1, count=1, minimum=1)
    alone.finish()
    fleet = mixed(tmp_path / "mixed", "dev-1", "dev-2", count=1)
    fleet.finish()
    assert not fleet.rejected
    one, all_three = model_of(alone), model_of(fleet)
    # Not diluted by those who sent nothing of it: dev-0's own update, as if it had been asked alone.
    np.testing.assert_allclose(all_three[BODY], one[BODY], rtol=1e-6)
    np.testing.assert_allclose(all_three[RUNNING], one[RUNNING], rtol=1e-6)
    assert (all_three[LAST] != one[LAST]).all()
    for each in (alone, fleet):
        each.store.close()


def test_a_mixed_round_interrupted_at_every_stage_ends_with_the_same_bits(tmp_path: Path) -> None:
    undisturbed = mixed(tmp_path / "a", "dev-1")
    undisturbed.finish()
    disturbed = mixed(tmp_path / "b", "dev-1")
    for turns in (3, 5, 2, 7, 4):
        for _ in range(turns):
            disturbed.turn()
        disturbed.kill()
        disturbed.start()
    disturbed.finish()
    assert disturbed.model() == undisturbed.model()
    assert [u.variant for u in disturbed.store.accepted(1)] == ["full", "head", "full"]
    for each in (undisturbed, disturbed):
        each.store.close()


def test_the_variant_of_each_device_is_shown_with_its_smaller_updates(tmp_path: Path) -> None:
    fleet = mixed(tmp_path, "dev-1")
    fleet.add("dev-late").silent = True
    fleet.until(lambda: len(fleet.committed) == 1)
    with Reports(tmp_path / "state") as reports:
        devices = {row.device: row.variant for row in reports.devices()}
        sizes = {row.device: (row.variant, row.bytes) for row in reports.round(1).devices}
    assert devices == {"dev-0": "full", "dev-1": "head", "dev-2": "full", "dev-late": None}
    assert sizes["dev-0"][1] - sizes["dev-1"][1] == 4 * (PARAMETERS - HEAD + BUFFERS)  # type: ignore[operator]
    fleet.store.close()


def test_a_store_of_before_there_were_variants_is_brought_up_to_date_by_the_coordinator(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=2)
    fleet.until(lambda: len(fleet.committed) == 1)
    fleet.kill()
    age(tmp_path / "state", 1)
    with pytest.raises(ConfigurationError, match="older version of sparsefleet; fleet-coordinator run brings it up"):
        Reports(tmp_path / "state")
    fleet.start()
    assert {u.variant for u in fleet.store.accepted(1)} == {"full"}
    fleet.finish()
    fleet.kill()
    store = Store(tmp_path / "state", LimitSettings(disk_mib=64))
    assert len(store.accepted(2)) == 3
    store.close()


class RealAgent:
    """An agent as devices run it, driven by the simulation as its fake ones are."""

    def __init__(self, folder: Path, device: str, variant: str, fleet: Simulation, seed: int) -> None:
        folder.mkdir()
        tiny.write_shard(folder / "shard.npz", seed=seed)
        self.store = AgentStore(folder / "state", 1 << 24)
        settings = AgentSettings(
            device=device,
            fleet="test",
            state="state",
            broker=BrokerSettings("mqtt://127.0.0.1:1883"),
            data=DataSettings(path="shard.npz"),
            training=TrainingSettings(variant=variant),
        )
        will = last_will(TOPICS, device, self.store.boot)
        self.transport: MemoryTransport = fleet.broker.connect(device, TOPICS.of_agent(device), will)
        self.agent = Agent(settings, folder, self.store, self.transport, np.random.default_rng(seed))

    def work(self, now: float) -> None:
        while (event := self.transport.poll(0)) is not None:
            self.agent.handle(event, now)
        self.agent.advance(now)


def test_a_full_and_a_partial_agent_train_one_model_and_the_partial_one_sends_less(tmp_path: Path) -> None:
    settings = make_settings(tmp_path, count=3, devices=2)
    fleet = Simulation(tmp_path, settings, tiny.write_bundle(tmp_path / "bundle"), examine=examine)
    fleet.start()
    agents = [
        RealAgent(tmp_path / variant, f"device-{variant}", variant, fleet, seed)
        for seed, variant in enumerate(("full", "bias"))
    ]
    fleet.agents = {agent.agent._settings.device: agent for agent in agents}  # type: ignore[misc]
    fleet.finish()
    assert [committed.devices for committed in fleet.committed] == [2, 2, 2]
    assert not fleet.rejected
    with Reports(tmp_path / "state") as reports:
        detail = {row.device: row for row in reports.round(3).devices}
    assert (detail["device-full"].variant, detail["device-bias"].variant) == ("full", "bias")
    assert detail["device-full"].bytes - detail["device-bias"].bytes == 4 * (tiny.TOTAL - tiny.CLASSES)  # type: ignore[operator]
    assert (model_of(fleet) != 0).all()
    for agent in agents:
        agent.store.close()
    fleet.store.close()
