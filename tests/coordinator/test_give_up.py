"""One accepted update whose payload is lost: its run stops until it is given up, in words that are kept."""

import sqlite3
from pathlib import Path

import pytest

from coordinator.cli import main
from protocol.errors import SparsefleetError
from tests.coordinator.simulation import Simulation
from tests.coordinator.test_cli import CONFIG

WHY = "the disk lost it"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "coordinator.toml"
    path.write_text(CONFIG.format(url="auto", port=1883))
    return path


def stopped(folder: Path) -> Simulation:
    """A fleet whose first round has two of three updates, one of which is gone from the disk, and no coordinator."""
    fleet = Simulation.make(folder, count=2)
    fleet.agents["dev-2"].silent = True
    fleet.until(lambda: len(fleet.store.accepted(1)) == 2)
    fleet.store.updates.path(fleet.store.accepted(1)[0].digest).unlink()
    fleet.kill()
    return fleet


def discard(config: Path, *, device: str = "dev-0", number: int = 1, reason: str = WHY) -> int:
    wanted = ["--round", str(number), "--device", device, "--reason", reason]
    return main(["discard", "--config", str(config), *wanted])


def test_a_run_that_lost_a_payload_goes_on_without_it(tmp_path: Path, config: Path) -> None:
    fleet = stopped(tmp_path)
    fleet.agents["dev-2"].silent = False
    assert discard(config) == 0
    fleet.add("dev-3")
    fleet.start()
    fleet.finish()
    assert [round_.devices for round_ in fleet.committed] == [3, 3]
    assert "dev-0" not in {update.device for update in fleet.store.accepted(1)}
    assert fleet.store.fate(1, "dev-0") == (None, WHY)
    fleet.store.close()


def test_without_that_the_run_stops_and_names_the_file(tmp_path: Path) -> None:
    fleet = stopped(tmp_path)
    fleet.agents["dev-2"].silent = False
    fleet.agents["dev-2"].restart()
    fleet.start()
    with pytest.raises(SparsefleetError, match="is gone; restore the state"):
        fleet.finish()
    fleet.store.close()


def test_what_is_not_there_or_done_already_is_refused(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped(tmp_path)
    assert discard(config, device="dev-2") == 3
    assert "no update of 'dev-2' was accepted for round 1" in capsys.readouterr().err
    assert discard(config, reason=" ") == 3
    assert discard(config) == 0
    assert discard(config, reason="again") == 2
    assert f"is discarded already: {WHY}" in capsys.readouterr().err
    sql = sqlite3.connect(tmp_path / "state" / "coordinator.sqlite")
    with sql:
        sql.execute("UPDATE updates SET fold = 1 WHERE device = 'dev-1'")
    sql.close()
    assert discard(config, device="dev-1") == 2
    assert "is in version 1 already" in capsys.readouterr().err


def test_nothing_is_given_up_under_a_coordinator_that_runs(
    tmp_path: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = stopped(tmp_path)
    fleet.start()
    assert discard(config) == 3
    assert "in use by another coordinator" in capsys.readouterr().err
    assert fleet.store.fate(1, "dev-0") == (None, None)
    fleet.store.close()
