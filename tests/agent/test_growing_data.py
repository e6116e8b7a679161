"""A folder that grows: new files at the next task, half-written ones later, and a task held to what it began with."""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent import agent, progress
from edge_agent.data import DataSettings, batches, load
from edge_agent.datasets.examples import FileRows
from edge_agent.datasets.listing import Listing, list_files
from edge_agent.settings import TrainingSettings
from protocol.errors import DataError
from protocol.messages import TaskReport
from protocol.transport import MemoryBroker
from tests.agent.datasets_at_hand import manifest
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_agent import ZEROS, Fleet, training_of
from tests.tiny import TOTAL, write_bundle, write_shard

NOW_S = 1_800_000_000.0
MODEL = (np.arange(1, TOTAL + 1) / 10).astype(np.float32)


def file(path: Path, changed_s: float, size: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (changed_s, changed_s))
    return path


def names(listing: Listing) -> list[str]:
    return [path.name for path in listing.paths]


def test_files_are_listed_in_order_without_those_that_are_being_written(tmp_path: Path) -> None:
    settings = DataSettings(path=".", settle_s=5.0)
    file(tmp_path / "b" / "2.wav", NOW_S - 100)
    file(tmp_path / "b" / "1.wav", NOW_S - 6)
    file(tmp_path / "a" / "3.wav", NOW_S - 4)
    file(tmp_path / "a" / "4.wav.part", NOW_S - 100)
    file(tmp_path / "a" / ".5.wav", NOW_S - 100)
    file(tmp_path / ".trash" / "6.wav", NOW_S - 100)
    listing = list_files(settings, tmp_path, NOW_S)
    assert (names(listing), listing.waiting) == (["1.wav", "2.wav"], 1)
    assert names(list_files(settings, tmp_path, NOW_S + 2)) == ["3.wav", "1.wav", "2.wav"]
    assert names(list_files(settings, tmp_path)) == ["3.wav", "1.wav", "2.wav"]


def test_a_clock_in_1970_keeps_no_file_waiting(tmp_path: Path) -> None:
    file(tmp_path / "1.wav", NOW_S)
    assert names(list_files(DataSettings(path="."), tmp_path, 30.0)) == ["1.wav"]


def test_a_file_that_is_named_does_not_wait(tmp_path: Path) -> None:
    file(tmp_path / "1.wav", NOW_S)
    assert names(list_files(DataSettings(path="1.wav"), tmp_path, NOW_S)) == ["1.wav"]


def test_data_that_is_all_being_written_is_refused_as_such(tmp_path: Path) -> None:
    file(tmp_path / "1.npz", NOW_S)
    settings = DataSettings(path=str(tmp_path))
    with pytest.raises(DataError, match="its 1 files changed in the last 3 s"):
        load(settings, manifest((1,)), tmp_path, list_files(settings, tmp_path, NOW_S))


def test_a_mark_finds_the_same_files_in_a_folder_that_grew_and_tells_when_they_changed(tmp_path: Path) -> None:
    settings = DataSettings(path=".")
    file(tmp_path / "2.wav", NOW_S - 100)
    file(tmp_path / "4.wav", NOW_S - 90)
    begun = list_files(settings, tmp_path, NOW_S)
    file(tmp_path / "1.wav", NOW_S + 50)
    file(tmp_path / "3.wav", NOW_S + 60)
    later = list_files(settings, tmp_path)
    assert later.mark != begun.mark
    assert later.until(begun.mark).mark == begun.mark
    for change in (
        lambda: file(tmp_path / "0.wav", NOW_S - 95),
        lambda: file(tmp_path / "2.wav", NOW_S - 100, size=2),
        lambda: (tmp_path / "4.wav").unlink(),
    ):
        change()
        assert list_files(settings, tmp_path).until(begun.mark).mark != begun.mark


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.datasets.listing.MAX_FILES", 2)
    for i in range(3):
        file(tmp_path / f"{i}.wav", NOW_S)
    with pytest.raises(DataError, match="over 2 files; keep several examples in one file"):
        list_files(DataSettings(path="."), tmp_path)


# Rows of large .npy files


def large(folder: Path, dtype: str = "<f4") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(6000, 256)).astype(dtype), rng.integers(0, 3, 6000)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", y)
    return x, y


@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4"])
def test_a_large_array_stays_on_the_disk_and_gives_the_same_batches(tmp_path: Path, dtype: str) -> None:
    x, y = large(tmp_path, dtype)
    dataset = load(DataSettings(path=str(tmp_path), memory_mib=1), manifest((256,)))
    assert isinstance(dataset.inputs[0].parts[0], FileRows)
    stream = batches(dataset, 32, np.random.default_rng(1))
    order = np.random.default_rng(1).permutation(6000)
    for i in range(4):
        batch, chosen = next(stream), order[i * 32 : (i + 1) * 32]
        assert batch.inputs[0].dtype == np.dtype(np.float32)
        np.testing.assert_array_equal(batch.inputs[0], x[chosen].astype(np.float32))
        np.testing.assert_array_equal(batch.targets[0], y[chosen])


def test_shards_of_which_examples_are_left_out_are_one_row_of_examples(tmp_path: Path) -> None:
    x, y = large(tmp_path)
    x[17, 3], y[18] = np.inf, 3
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    np.save(tmp_path / "x-1.npy", x[:10] + 1)
    np.save(tmp_path / "y-1.npy", y[:10])
    dataset = load(DataSettings(path=str(tmp_path)), manifest((256,)))
    assert (dataset.left_out.non_finite, dataset.left_out.labels, len(dataset)) == (1, 1, 6008)
    kept = np.delete(np.arange(6000), [17, 18])
    np.testing.assert_array_equal(np.concatenate(list(dataset.inputs[0].blocks())), np.vstack([x[:10] + 1, x[kept]]))
    np.testing.assert_array_equal(dataset.targets[0][np.array([6007, 9, 10])], [y[5999], y[9], y[0]])


def test_a_large_array_that_changes_or_goes_under_training_is_an_error_and_no_crash(tmp_path: Path) -> None:
    x, _ = large(tmp_path)
    dataset = load(DataSettings(path=str(tmp_path)), manifest((256,)))
    np.save(tmp_path / "x.npy", x[:100])
    with pytest.raises(DataError, match="changed while it was trained on; write new data to a new file"):
        dataset.inputs[0][np.array([5999])]
    with pytest.raises(DataError, match="changed while it was trained on"):
        dataset.inputs[0][np.array([5])]
    (tmp_path / "x.npy").unlink()
    with pytest.raises(DataError, match="cannot be read any more"):
        dataset.inputs[0][np.array([5])]


def test_a_large_array_that_is_cut_short_or_in_another_order_is_refused(tmp_path: Path) -> None:
    x, _ = large(tmp_path)
    settings = DataSettings(path=str(tmp_path))
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    with pytest.raises(DataError, match=r"Fortran order; save numpy\.ascontiguousarray"):
        load(settings, manifest((256,)))
    np.save(tmp_path / "x.npy", x)
    os.truncate(tmp_path / "x.npy", x.nbytes)
    with pytest.raises(DataError, match=r"x\.npy: cannot be read: it has 6144000 bytes where shape"):
        load(settings, manifest((256,)))


# The agent


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """An agent that does one step a turn over a folder of shards, and keeps a checkpoint after each."""
    monkeypatch.setattr(agent, "SLICE_S", 0.0)
    monkeypatch.setattr(progress, "MOST_BYTES_PER_S", 1e15)
    bundle = write_bundle(tmp_path / "bundle")
    shard(tmp_path / "shards" / "b.npz", 1)
    broker = MemoryBroker()
    settings = TrainingSettings(checkpoint_s=1e-9)
    made = Fleet(tmp_path, broker, FakeCoordinator(broker, bundle), None, None, training=settings)  # type: ignore[arg-type]
    made.data = DataSettings(path="shards")
    made.start(tmp_path)
    yield made
    made.store.close()


def shard(path: Path, seed: int, age_s: float = 60.0) -> None:
    """A shard of 40 examples, last changed so long ago."""
    path.parent.mkdir(exist_ok=True)
    write_shard(path, seed=seed)
    os.utime(path, (time.time() - age_s,) * 2)


def payload(fleet: Fleet, number: int) -> bytes:
    fleet.until(lambda: len(fleet.coordinator.payloads) == number and not fleet.store.outbox())
    return fleet.coordinator.payloads[-1]


def at_step(fleet: Fleet, number: int) -> None:
    fleet.until(lambda: (training := training_of(fleet)) is not None and training.done >= number)


def test_the_next_task_sees_new_files_and_one_being_written_is_left_for_later(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    payload(fleet, 1)
    shard(fleet.folder / "shards" / "a.npz", 2)
    shard(fleet.folder / "shards" / "c.npz", 3, age_s=0.0)
    fleet.coordinator.say(fleet.coordinator.task(2, MODEL))
    payload(fleet, 2)
    assert [report.examples for report in fleet.coordinator.reports] == [40, 80]


def test_a_task_that_is_killed_goes_on_with_the_files_it_began_with(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=12))
    undisturbed = payload(fleet, 1)
    fleet.folder = fleet.folder / "anew"
    shards = fleet.folder / "shards"
    fleet.folder.mkdir()
    shard(shards / "b.npz", 1)
    fleet.restart()
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=12))
    for number in (3, 6):
        at_step(fleet, number)
        shard(shards / f"a{number}.npz", number, age_s=-5.0)
        fleet.restart()
    assert payload(fleet, 2) == undisturbed
    fleet.coordinator.say(fleet.coordinator.task(2, MODEL))
    payload(fleet, 3)
    assert fleet.coordinator.reports[-1].examples == 120, "the next task has all, though it starts from the same model"


def test_a_task_whose_files_changed_begins_anew_and_says_so(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=12))
    at_step(fleet, 5)
    shard(fleet.folder / "shards" / "b.npz", 9)
    fleet.restart()
    at_step(fleet, 1)
    assert "data changed under a task that had begun: it begins anew" in caplog.text
    assert "begins anew, its checkpoint is passed over" in caplog.text
    payload(fleet, 1)


def test_examples_left_out_are_told_to_the_coordinator_and_logged(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    path = fleet.folder / "shards" / "b.npz"
    with np.load(path) as held:
        x, y = held["x"], held["y"]
    x[3, 0], y[4] = np.nan, 9
    np.savez(path, x=x, y=y)
    os.utime(path, (1e9, 1e9))
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL))
    payload(fleet, 1)
    assert fleet.coordinator.reports == [TaskReport("run/1", "accepted", 38, "numpy", left_out=2)]
    assert "data left out labels=1 non_finite=1 unreadable=0 files=0" in caplog.text


def test_data_that_goes_while_it_is_trained_on_ends_the_task_with_that_reason(fleet: Fleet) -> None:
    rng = np.random.default_rng(1)
    folder = fleet.folder / "shards"
    (folder / "b.npz").unlink()
    np.save(folder / "x.npy", rng.normal(size=(400_000, 3)).astype(np.float32))
    np.save(folder / "y.npy", rng.integers(0, 2, 400_000))
    for path in folder.iterdir():
        os.utime(path, (1e9, 1e9))
    fleet.coordinator.say(replace(fleet.coordinator.task(1, MODEL), local_steps=50))
    at_step(fleet, 2)
    (folder / "x.npy").unlink()
    fleet.until(lambda: fleet.agent.job.phase == "idle")
    last = fleet.coordinator.reports[-1]
    assert (last.state, last.reason) == ("failed", "data")
    assert "x.npy: cannot be read any more" in last.detail
