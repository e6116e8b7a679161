"""Histories that are folded again from their payloads: the same bits, the first that differs, or without a device."""

import gzip
import hashlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coordinator.cli import main
from coordinator.history import open_history
from coordinator.replay import Replayed, Without, replay, replay_without
from coordinator.settings import DownlinkSettings, ServerSettings, Settings, TierSettings
from coordinator.trust_settings import FoldSettings
from protocol.errors import SparsefleetError
from tests.coordinator.simulation import HEAD, Simulation
from tests.coordinator.test_cli import CONFIG
from tests.coordinator.test_fleet_mask import fleet_of as masked_fleet
from tests.coordinator.test_fleet_mask import settings_of

HALF = "tier-050"


def changed(fleet: Simulation, **settings: Any) -> Simulation:
    """The same fleet under other settings, before its first round."""
    fleet.kill()
    fleet.settings = replace(fleet.settings, **settings)
    fleet.start()
    return fleet


def late_fleet(folder: Path) -> Simulation:
    fleet = Simulation.make(folder, 4, count=8, over_select=1.3, deadline_s=1000.0)
    for device, agent in fleet.agents.items():
        agent.train_s = 25.0 if device == "dev-3" else 10.0
    return fleet


def robust_fleet(folder: Path, fold: FoldSettings) -> Simulation:
    fleet = Simulation.make(folder, 5, count=4)
    return changed(fleet, fold=fold, rounds=replace(fleet.settings.rounds, devices=5))


def tier_fleet(folder: Path) -> Simulation:
    tiers = TierSettings(select="rolling", assign={"dev-0": HALF, "dev-1": "full", "dev-2": HALF})
    return Simulation.make(folder, tiers=tiers, count=4)


FLEETS: dict[str, Callable[[Path], Simulation]] = {
    "plain": lambda folder: Simulation.make(folder, count=4),
    "momentum": lambda folder: changed(Simulation.make(folder, count=4), server=ServerSettings("momentum", 0.5)),
    "adam": lambda folder: changed(Simulation.make(folder, count=4), server=ServerSettings("adam", 0.1)),
    "buckets": lambda folder: robust_fleet(folder, FoldSettings("geometric-median", bucket=2)),
    "memory": lambda folder: robust_fleet(folder, FoldSettings("multi-krum", byzantine=1, memory=0.5)),
    "tiers": tier_fleet,
    "late": late_fleet,
    "downlink": lambda folder: changed(
        Simulation.make(folder, count=4, parameters=400), downlink=DownlinkSettings("topk:0.1/int8")
    ),
}


def replayed(fleet: Simulation, settings: Settings | None = None) -> list[Replayed]:
    history = open_history(fleet.folder / "state")
    try:
        return list(replay(history, fleet.bundle.manifest, settings or fleet.settings))
    finally:
        history.close()


def without(fleet: Simulation, device: str) -> tuple[list[Without], list[Any]]:
    made: list[Any] = []
    history = open_history(fleet.folder / "state")
    try:
        rows = list(
            replay_without(
                history, fleet.bundle.manifest, fleet.settings, device, lambda dense, _: made.append(dense.copy())
            )
        )
    finally:
        history.close()
    return rows, made


@pytest.mark.parametrize("kind", FLEETS)
def test_every_version_of_a_run_is_folded_again_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    fleet = FLEETS[kind](tmp_path)
    fleet.finish()
    found = replayed(fleet)
    assert [row.version for row in found] == list(range(1, fleet.settings.rounds.count + 1))
    assert {(row.why_not, row.difference) for row in found} == {(None, None)}
    if kind == "late":
        late = fleet.store._sql.execute("SELECT count(*) FROM updates WHERE fold > round").fetchone()[0]
        assert late, "some came after their round"
    fleet.store.close()


def test_masks_and_what_devices_report_off_them_are_folded_again(tmp_path: Path) -> None:
    fleet = masked_fleet(tmp_path, settings_of(tmp_path, 5, 2, end_round=3, report_every=2), 2)
    fleet.finish()
    assert [(row.why_not, row.difference) for row in replayed(fleet)] == [(None, None)] * 5
    rows, made = without(fleet, "dev-1")
    assert [row.left_out for row in rows] == [1] * 5
    assert rows[-1].distance > 0
    assert made[-1].tobytes() != fleet.model()
    fleet.close()


def test_it_reads_beside_the_coordinator_and_changes_nothing(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=6)
    fleet.until(lambda: len(fleet.committed) == 3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "state").rglob("*") if path.is_file()}
    assert [row.difference for row in replayed(fleet)] == [None] * 3
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.name for path in before if before[path] != after[path]} <= {"coordinator.sqlite-shm"}
    fleet.finish()
    assert len(replayed(fleet)) == 6
    fleet.store.close()


def flip(state: Path, version: int, at: int) -> None:
    """One bit of a stored model, under a name that is right, as whoever forges a history would do it."""
    sql = sqlite3.connect(state / "coordinator.sqlite")
    (digest,) = sql.execute("SELECT digest FROM models WHERE version = ?", (version,)).fetchone()
    data = bytearray((state / "models" / digest.hex()).read_bytes())
    data[4 * at] ^= 1
    forged = hashlib.sha256(data).digest()
    (state / "models" / forged.hex()).write_bytes(data)
    with sql:
        sql.execute("UPDATE models SET digest = ? WHERE version = ?", (forged, version))
    sql.close()


def test_the_first_bit_that_differs_is_named(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=4)
    fleet.finish()
    fleet.store.close()
    flip(tmp_path / "state", 2, 20 - HEAD + 3)
    first, second, third, fourth = replayed(fleet)
    assert first.difference is None
    assert second.difference is not None
    assert (second.difference.tensor, second.difference.index, second.difference.differing) == ("head", (3,), 1)
    assert int(second.difference.stored_bits, 16) ^ int(second.difference.folded_bits, 16) == 1
    assert third.difference is not None, "it was not made from what the store says now"
    assert fourth.difference is None


def test_an_update_that_counts_for_something_else_is_noticed(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=2)
    fleet.finish()
    with fleet.store._sql as sql:
        sql.execute("UPDATE updates SET weight = weight + 1 WHERE round = 2 AND device = 'dev-1'")
    assert [row.difference is None for row in replayed(fleet)] == [True, False]
    fleet.store.close()


def test_rounds_whose_payloads_are_not_kept_are_named_with_how_to_keep_them(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=5)
    changed(fleet, limits=replace(fleet.settings.limits, keep_rounds=2), server=ServerSettings("adam", 0.1))
    fleet.finish()
    found = replayed(fleet)
    assert [row.why_not is None for row in found] == [False, False, False, True, True]
    assert [row.difference for row in found[3:]] == [None, None]
    assert "3 of 3 payloads are not kept" in str(found[0].why_not)
    assert "limits.keep_rounds" in str(found[0].why_not)
    rows, _ = without(fleet, "dev-1")
    assert [row.version for row in rows] == [4, 5]
    fleet.store.close()


def test_a_payload_that_was_to_be_kept_and_is_gone_is_named(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=3)
    fleet.finish()
    lost = fleet.store.accepted(2)[1]
    fleet.store.updates.path(lost.digest).unlink()
    found = replayed(fleet)
    assert [row.why_not is None for row in found] == [True, False, True]
    assert f"the payload of {lost.device} for round 2 is gone" in str(found[1].why_not)
    fleet.store.close()


@pytest.mark.parametrize("kind", ["plain", "adam", "tiers", "late"])
def test_a_history_without_a_device_that_was_not_in_it_is_the_same(kind: str, tmp_path: Path) -> None:
    fleet = FLEETS[kind](tmp_path)
    fleet.finish()
    rows, made = without(fleet, "nobody")
    assert {row.distance for row in rows} == {0.0}
    assert made[-1].tobytes() == fleet.model()
    fleet.store.close()


def test_a_history_without_a_device_is_that_of_the_others_alone(tmp_path: Path) -> None:
    three = Simulation.make(tmp_path / "three", count=3)
    three.finish()
    two = Simulation.make(tmp_path / "two", devices=2, count=3)
    two.kill()
    two.settings = replace(two.settings, rounds=replace(two.settings.rounds, devices=2))
    two.start()
    two.finish()
    rows, made = without(three, "dev-2")
    # The formula of an update knows nothing of the model it started from, so the two are comparable.
    assert made[-1].tobytes() == two.model()
    assert [row.left_out for row in rows] == [1, 1, 1]
    assert rows[-1].distance > 0
    assert rows[-1].moved > 0
    three.store.close()
    two.store.close()


def test_a_round_of_that_device_alone_makes_nothing(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, 1, count=2)
    changed(fleet, rounds=replace(fleet.settings.rounds, devices=1))
    fleet.finish()
    rows, made = without(fleet, "dev-0")
    assert [row.updates for row in rows] == [0, 0]
    assert (made[-1][:20] == 1.0).all()
    fleet.store.close()


def finished(folder: Path) -> Path:
    fleet = Simulation.make(folder)
    fleet.finish()
    fleet.store.close()
    config = folder / "coordinator.toml"
    config.write_text(CONFIG.format(url="auto", port=1883).replace('[evaluation]\ndata = "test.npz"\n', ""))
    return config


def test_the_command_says_how_many_versions_have_every_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = finished(tmp_path)
    assert main(["replay", "--config", str(config)]) == 0
    assert "3 of 3 versions folded again from their payloads, 3 with every bit the same" in capsys.readouterr().out
    assert main(["replay", "--config", str(config), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["versions"], said["replayed"], said["same"], said["first_difference"]) == (3, 3, 3, None)


def test_the_command_ends_with_1_at_a_difference_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finished(tmp_path)
    flip(tmp_path / "state", 3, 2)
    assert main(["replay", "--config", str(config)]) == 1
    said = capsys.readouterr().out
    assert "version 3: weight[2] is" in said
    assert "2 with every bit the same" in said
    assert main(["replay", "--config", str(config), "--json"]) == 1
    first = json.loads(capsys.readouterr().out)["first_difference"]
    assert (first["version"], first["difference"]["tensor"], first["difference"]["index"]) == (3, "weight", [2])


def test_the_command_writes_the_model_without_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = finished(tmp_path)
    out = tmp_path / "without.onnx.gz"
    assert main(["replay", "--config", str(config), "--without", "dev-1", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["left_out"] for row in said["versions"]] == [1, 1, 1]
    assert len(gzip.decompress(out.read_bytes())) == 100
    assert main(["replay", "--config", str(config), "--without", "dev-1"]) == 0
    assert "version 3: 1 of 3 updates left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--run", "other"), "--run: the run in"),
        (("--out", "x.onnx"), "--out: writes the model that --without makes"),
        (("--without", "nobody"), "--without: no update of 'nobody' is known"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_reason(
    options: tuple[str, ...], text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finished(tmp_path)
    assert main(["replay", "--config", str(config), *options]) == 3
    assert text in capsys.readouterr().err


def test_a_run_of_which_nothing_is_kept_is_nothing_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = Simulation.make(tmp_path)
    changed(fleet, limits=replace(fleet.settings.limits, keep_rounds=0))
    fleet.finish()
    with pytest.raises(SparsefleetError, match="cannot be made without a device: 3 of 3 payloads are not kept"):
        without(fleet, "dev-0")
    fleet.store.close()
    config = tmp_path / "coordinator.toml"
    config.write_text(CONFIG.format(url="auto", port=1883).replace('[evaluation]\ndata = "test.npz"\n', ""))
    assert main(["replay", "--config", str(config)]) == 2
    said = capsys.readouterr()
    assert "version 1 to 3: not replayed: 3 of 3 payloads are not kept" in said.out
