"""Rounds of devices that train slices of the model's width, over an in-memory broker."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.settings import TierSettings
from edge_agent.runtimes.engine import Vector
from protocol.errors import ConfigurationError
from protocol.messages import Offer, Task
from tests.coordinator.simulation import HEAD, Simulation, named

PARAMETERS = 20
BODY = slice(0, PARAMETERS - HEAD)
LAST = slice(PARAMETERS - HEAD, PARAMETERS)
HALF = "tier-050"


def fleet_of(folder: Path, *halves: str, select: str = "static", count: int = 3) -> Simulation:
    """Three devices, of which these work on half of the channels."""
    assign = {f"dev-{i}": HALF if f"dev-{i}" in halves else "full" for i in range(3)}
    return Simulation.make(folder, tiers=TierSettings(select=select, assign=assign), count=count)  # type: ignore[arg-type]


def model_of(fleet: Simulation) -> Vector:
    return np.frombuffer(fleet.model(), "<f4")


def tasks_of(fleet: Simulation, device: str) -> list[Task]:
    return [said for said in fleet.agents[device].heard if isinstance(said, Task)]


def test_a_tiers_device_gets_the_slice_and_the_others_the_whole(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, "dev-1", count=1)
    fleet.finish()
    whole, half = tasks_of(fleet, "dev-0")[0], tasks_of(fleet, "dev-1")[0]
    assert (whole.variant, half.variant) == ("full", HALF)
    assert whole.model.size - half.model.size == 4 * (HEAD // 2)
    assert whole.channels is None
    assert half.channels is not None
    assert not fleet.rejected
    fleet.store.close()


def test_channels_outside_every_slice_stay_as_they_are(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, "dev-0", "dev-1", "dev-2")
    before = model_of(fleet)
    fleet.finish()
    after = model_of(fleet)
    kept, left = slice(LAST.start, LAST.start + HEAD // 2), slice(LAST.start + HEAD // 2, LAST.stop)
    assert (after[BODY] != before[BODY]).all()
    assert (after[kept] != before[kept]).all()
    assert after[left].tobytes() == before[left].tobytes()
    fleet.store.close()


def test_rolling_slices_reach_every_channel(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, "dev-0", "dev-1", "dev-2", select="rolling", count=HEAD)
    before = model_of(fleet)
    fleet.finish()
    assert (model_of(fleet)[LAST] != before[LAST]).all()
    fleet.store.close()


def test_a_fleet_on_one_tier_that_is_whole_ends_with_the_bits_of_plain_averaging(tmp_path: Path) -> None:
    plain = Simulation.make(tmp_path / "plain", count=3)
    plain.finish()
    tiered = fleet_of(tmp_path / "tiered")
    tiered.finish()
    # Runs differ in name, and seeds do not depend on it.
    assert plain.model() == tiered.model()
    for each in (plain, tiered):
        each.store.close()


@pytest.mark.parametrize("select", ["static", "rolling", "importance"])
def test_a_tiered_run_interrupted_at_every_stage_ends_with_the_same_bits(tmp_path: Path, select: str) -> None:
    undisturbed = fleet_of(tmp_path / "a", "dev-1", select=select)
    undisturbed.finish()
    disturbed = fleet_of(tmp_path / "b", "dev-1", select=select)
    for turns in (3, 5, 2, 7, 4):
        for _ in range(turns):
            disturbed.turn()
        disturbed.kill()
        disturbed.start()
    disturbed.finish()
    assert disturbed.model() == undisturbed.model()
    for each in (undisturbed, disturbed):
        each.store.close()


def test_an_update_of_another_tier_than_the_tasks_is_refused(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, "dev-1", count=1)

    def claim_whole(offer: Offer, payload: bytes) -> tuple[Offer, bytes]:
        return named(replace(offer, variant="full"), payload)

    fleet.agents["dev-1"].mangle = claim_whole
    fleet.until(lambda: bool(fleet.rejected))
    assert (fleet.rejected[0].device, fleet.rejected[0].reason) == ("dev-1", "variant")
    fleet.store.close()


def test_a_device_gets_the_widest_tier_that_its_memory_holds_and_one_too_small_is_told_so(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, devices=1, tiers=TierSettings(), count=1)
    for device, memory_mib in (("dev-1", 180), ("dev-2", 900), ("dev-small", 64)):
        agent = fleet.add(device)
        agent.memory_mib = memory_mib
    fleet.finish()
    told = {device: {task.variant for task in tasks_of(fleet, device)} for device in fleet.agents}
    assert told == {"dev-0": {"full"}, "dev-1": {HALF}, "dev-2": {"full"}, "dev-small": set()}
    assert ("dev-small", "memory") in [(event.device, event.reason) for event in fleet.rejected]
    fleet.store.close()


def test_a_round_waits_for_as_many_devices_as_can_work_in_it_and_counts_the_others_once(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, devices=2, tiers=TierSettings(), count=1)
    small = fleet.add("dev-small")
    small.memory_mib = 64
    for _ in range(200):
        fleet.turn()
    assert not any(tasks_of(fleet, device) for device in fleet.agents)
    assert [event.device for event in fleet.rejected] == ["dev-small"]
    fleet.add("dev-2")
    fleet.finish()
    assert fleet.committed[0].devices == 3
    fleet.store.close()


def test_a_tier_that_is_not_there_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"'dev-0' is to work on 'tier-025'; the tiers in use are full, tier-050"
    ):
        Simulation.make(tmp_path, tiers=TierSettings(assign={"dev-0": "tier-025"}))
