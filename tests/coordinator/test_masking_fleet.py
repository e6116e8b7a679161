"""Fleets that learn a mask over frozen weights: real agents, the real coordinator, through kills and restarts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.history import open_history
from coordinator.intake import check_offer
from coordinator.replay import replay, replay_without
from coordinator.structure import Structure
from coordinator.vote_settings import MaskingSettings
from protocol.errors import ConfigurationError
from protocol.messages import BlobRef, Offer, Task
from sparse.codecs import BALLOT, ballot_bytes
from tests.coordinator.masking_fleet import WEIGHTS, D, bits, fleet_of, payload_of


def test_every_version_has_the_frozen_weights_bit_for_bit_and_a_mask_that_is_better(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, 3, 8, rate=0.5).until_version(8)
    for version in range(9):
        row = fleet.store.version(version)
        assert row is not None
        assert fleet.store.models.read(row.blob.digest) == WEIGHTS.astype("<f4").tobytes()
    first, last = fleet.structure(0), fleet.structure(8)
    assert first.mask is not None
    assert first.mask.all()
    assert last.mask is not None
    assert last.mask[D:].all(), "biases are in every mask"
    assert not last.mask.all()
    frozen = fleet.examine(WEIGHTS).metrics["accuracy"]
    assert fleet.committed[-1].accuracy is not None
    assert fleet.committed[-1].accuracy > frozen
    fleet.close()


def test_of_one_device_the_chances_are_its_mask(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, 1, 3).until_version(3)
    for version in (1, 2, 3):
        chances = fleet.structure(version).chances
        assert chances is not None
        np.testing.assert_allclose(chances[:D], bits(fleet, payload_of(fleet, version, "dev-0")), atol=1e-6)
    fleet.close()


def test_every_update_is_ceil_d_over_8_bytes_and_a_header(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, 2, 3).until_version(3)
    sizes = {offer.blob.size for offer in fleet.broker.of(Offer) if isinstance(offer, Offer)}
    assert sizes == {20 + -(-D // 8)}
    tasks = [task for task in fleet.broker.of(Task) if isinstance(task, Task)]
    assert len({task.model.digest for task in tasks}) == 1, "the weights travel once"
    assert {task.chances.size for task in tasks if task.chances is not None} == {D}
    fleet.close()


def test_masks_survive_kills_of_agents_and_coordinator_at_any_turn(tmp_path: Path) -> None:
    quiet = fleet_of(tmp_path / "quiet", 3, 3).until_version(3)
    killed = fleet_of(tmp_path / "killed", 3, 3, checkpoints=True).until_version(3, disturb=True)
    for version in (1, 2, 3):
        one, other = quiet.structure(version), killed.structure(version)
        assert one.chances is not None
        assert other.chances is not None
        assert one.chances.tobytes() == other.chances.tobytes()
        for device in quiet.agents:
            assert payload_of(quiet, version, device) == payload_of(killed, version, device)
    quiet.close()
    killed.close()


def test_replay_folds_every_vote_again_to_the_same_bits_and_without_a_device_to_others(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, 3, 3).until_version(3)
    fleet.kill()
    history, settings = open_history(tmp_path / "state"), fleet.settings
    rows = list(replay(history, fleet.bundle.manifest, settings))
    assert [(row.version, row.why_not, row.difference) for row in rows] == [(n, None, None) for n in (1, 2, 3)]
    made = list[Structure]()
    without = list(
        replay_without(history, fleet.bundle.manifest, settings, "dev-1", lambda _, structure: made.append(structure))
    )
    assert [row.left_out for row in without] == [1, 1, 1]
    assert made[-1].chances is not None
    stored = history.structure(3)
    assert stored is not None
    assert stored.chances is not None
    assert (made[-1].chances != stored.chances).any()
    assert without[-1].distance > 0


def test_an_agent_that_knows_of_no_masks_is_not_asked_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge_agent.agent.SKILLS", ())
    fleet = fleet_of(tmp_path, 1, 2)
    for _ in range(60):
        fleet.turn()
    assert not fleet.broker.of(Task)
    assert "does not know masking (masking.keep); upgrade it" in caplog.text
    fleet.close()


def test_a_run_that_began_to_train_weights_does_not_go_on_to_learn_a_mask(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, 1, 3).until_version(1)
    fleet.kill()
    fleet.settings = replace(fleet.settings, masking=MaskingSettings())
    with pytest.raises(ConfigurationError, match=r"masking.keep: 0, and the run in this state folder began to learn"):
        fleet.start()
    fleet.close()


def test_a_ballot_of_another_size_is_refused_before_it_is_asked_for(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, 1, 2)
    while not fleet.broker.of(Task):
        fleet.turn()
    (task, *_) = fleet.broker.of(Task)
    assert isinstance(task, Task)
    course, manifest = fleet.coordinator._course, fleet.bundle.manifest
    due = ballot_bytes(D)
    for size, reason in ((due - 1, "size"), (due + 1, "size"), (due, None)):
        offer = Offer(
            *(BlobRef(bytes(32), size), task.run, task.round, 1, 1, task.model.digest, 10, 8, 0.5, 0.1, BALLOT, "full")
        )
        found = check_offer(offer, task.run, course.seat("dev-0", task.round), manifest, course.view_for)
        assert (None if found is None else found.reason) == reason
    fleet.close()
