"""Agents and coordinators one minor version apart: the last commit of 0.1 and this tree, as real processes."""

import io
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import require_broker
from tests.real_fleet import ROOT, RealFleet

pytestmark = pytest.mark.real

# The last commit whose version was 0.1.0.
BEFORE = "67625e676168ba822186686fe21e76e24e6de032"
PARTS = ("protocol", "sparse", "edge_agent", "coordinator", "pyproject.toml")


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of that version, from this clone's history."""
    made = subprocess.run(["git", "-C", str(ROOT), "archive", BEFORE, *PARTS], capture_output=True)
    if made.returncode != 0:
        pytest.skip(f"history not at hand: this clone has no commit {BEFORE[:12]}; git fetch --unshallow brings it")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(made.stdout)) as archive:
        archive.extractall(folder, filter="data")
    assert 'version = "0.1.0"' in (folder / "pyproject.toml").read_text()
    return folder


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RealFleet]:
    require_broker("mosquitto")
    made = RealFleet(tmp_path, "mosquitto", rounds=6, devices=2, enrols=True)
    yield made
    made.stop()


def test_a_new_coordinator_that_is_told_to_enrols_and_folds_old_and_new_agents(fleet: RealFleet, before: Path) -> None:
    hear_old_agents(fleet)
    fleet.start_coordinator()
    for device, tree in (("device-00", before), ("device-01", ROOT)):
        fleet.trees["edge_agent"] = tree
        assert fleet.enrol(device).exit_code == 0
        fleet.start_agent(device)
    fleet.finish()
    assert accepted(fleet) == {"device-00": (6, 0), "device-01": (6, 0)}


def test_an_old_fleet_is_upgraded_piece_by_piece_and_goes_on_with_what_it_has(fleet: RealFleet, before: Path) -> None:
    fleet.trees.update(edge_agent=before, coordinator=before)
    fleet.start()
    fleet.until(lambda: len(fleet.committed()) >= 1)
    # A new agent on an old one's state, under the old coordinator.
    fleet.kill(fleet.agents["device-00"])
    fleet.trees["edge_agent"] = ROOT
    fleet.start_agent("device-00")
    fleet.until(lambda: len(fleet.committed()) >= 3)
    # A new coordinator on the old one's state, with one agent of each.
    assert fleet.coordinator is not None
    fleet.kill(fleet.coordinator)
    fleet.trees["coordinator"] = ROOT
    hear_old_agents(fleet)
    fleet.start_coordinator()
    fleet.finish()
    assert accepted(fleet) == {"device-00": (6, 0), "device-01": (6, 0)}


def hear_old_agents(fleet: RealFleet) -> None:
    """Has the coordinator take in agents of before there were seals (docs/signing.md), for as long as there are any."""
    config = fleet.folder / "coordinator.toml"
    config.write_text(config.read_text().replace("[trust]\n", "[trust]\nrequire_seals = false\n"))


def accepted(fleet: RealFleet) -> dict[str, tuple[int, int]]:
    """Of every device, updates that were accepted and rejected."""
    return {row["device"]: (row["accepted"], row["rejected"]) for row in fleet.ask("devices")["devices"]}
