"""A task that is interrupted goes on from its checkpoint, and its update has the bits of one that was not."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent import agent, progress
from edge_agent.settings import TrainingSettings
from edge_agent.training import LocalTraining
from protocol.disk import Disk
from protocol.messages import Offer, OptimizerSpec, Task, Withdraw
from protocol.transport import MemoryBroker
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_agent import Fleet, training_of
from tests.agent.test_masks import task_of
from tests.tiny import TOTAL, write_bundle, write_shard

MODEL = (np.arange(1, TOTAL + 1) / 10).astype(np.float32)
STEPS = 24
# One step of trial: what is killed here are trainings on a bundle that passed.
ALWAYS = TrainingSettings(checkpoint_s=1e-9, trial_steps=1)
Make = Callable[[Fleet], Task]


def plain(optimizer: OptimizerSpec, codec: str = "all/float32") -> Make:
    return lambda fleet: replace(fleet.coordinator.task(1, MODEL, codec=codec, steps=STEPS), optimizer=optimizer)


def epochs(fleet: Fleet) -> Task:
    return replace(fleet.coordinator.task(1, MODEL), local_steps=0, local_epochs=5)


def under_a_mask(fleet: Fleet) -> Task:
    return replace(task_of(fleet, 1, report=2), local_steps=STEPS)


TASKS = {
    "momentum": plain(OptimizerSpec(momentum=0.9, nesterov=True, weight_decay=0.01)),
    "adamw": plain(OptimizerSpec("adamw", weight_decay=0.01)),
    "proximal": plain(OptimizerSpec(momentum=0.9, proximal=0.1)),
    "drawn places": plain(OptimizerSpec(), "randk:0.5/float32"),
    "epochs": epochs,
    "mask and report": under_a_mask,
}


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """An agent that does one step a turn and keeps a checkpoint after each but the last."""
    monkeypatch.setattr(agent, "SLICE_S", 0.0)
    monkeypatch.setattr(progress, "MOST_BYTES_PER_S", 1e15)
    bundle = write_bundle(tmp_path / "bundle")
    write_shard(tmp_path / "shard.npz")
    broker = MemoryBroker()
    made = Fleet(tmp_path, broker, FakeCoordinator(broker, bundle), None, None, training=ALWAYS)  # type: ignore[arg-type]
    made.start(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def steps_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of every step that any training took."""
    taken: list[int] = []
    step = LocalTraining.step

    def counted(self: LocalTraining) -> object:
        taken.append(self.done + 1)
        return step(self)

    monkeypatch.setattr(LocalTraining, "step", counted)
    return taken


def checkpoints(fleet: Fleet) -> list[Path]:
    return sorted((fleet.folder / "state" / "blobs").glob("*.checkpoint"))


def at_step(fleet: Fleet, number: int) -> None:
    def there() -> bool:
        training = training_of(fleet)
        return training is not None and training.done >= number

    fleet.until(there)


def payload(fleet: Fleet) -> bytes:
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())
    return fleet.coordinator.payloads[-1]


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS.keys())
def test_a_task_that_is_killed_again_and_again_gives_the_bytes_of_one_that_was_not(
    fleet: Fleet, make: Make, steps_taken: list[int]
) -> None:
    fleet.coordinator.say(make(fleet))
    undisturbed = payload(fleet)
    fleet.coordinator.payloads.clear()
    total, begun = len(steps_taken), len(steps_taken)
    # The coordinator gives the same task to a device whose disk was replaced.
    fleet.folder = fleet.folder / "anew"
    fleet.folder.mkdir()
    write_shard(fleet.folder / "shard.npz")
    fleet.restart()
    fleet.coordinator.say(make(fleet))
    for number in (1, 2, 7, 8, 15, total - 1):
        at_step(fleet, number)
        fleet.restart()
    assert payload(fleet) == undisturbed
    assert steps_taken[begun:] == list(range(1, total + 1)), "each step was taken once"
    assert checkpoints(fleet) == []


def test_an_interrupted_task_says_where_it_goes_on(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=STEPS))
    at_step(fleet, 5)
    fleet.restart()
    payload(fleet)
    assert "task=run/1 goes on after step=5" in caplog.text


def changed_shard(fleet: Fleet) -> None:
    write_shard(fleet.folder / "shard.npz", seed=5)


def changed_byte(fleet: Fleet) -> None:
    (kept,) = checkpoints(fleet)
    data = kept.read_bytes()
    kept.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def cut(fleet: Fleet) -> None:
    (kept,) = checkpoints(fleet)
    kept.write_bytes(kept.read_bytes()[:-9])


def emptied(fleet: Fleet) -> None:
    (kept,) = checkpoints(fleet)
    kept.write_bytes(b"")


def more_threads(fleet: Fleet) -> None:
    fleet.training = replace(ALWAYS, threads=2)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (changed_shard, "data is"),
        (changed_byte, "SHA-256 differs"),
        (cut, "is no whole checkpoint"),
        (emptied, "is no whole checkpoint"),
        (more_threads, "threads is 1 there and 2 here"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_passed_over_with_the_reason(
    fleet: Fleet,
    spoil: Callable[[Fleet], None],
    says: str,
    caplog: pytest.LogCaptureFixture,
    steps_taken: list[int],
) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=STEPS))
    at_step(fleet, 5)
    spoil(fleet)
    fleet.restart()
    payload(fleet)
    assert "task=run/1 begins anew, its checkpoint is passed over" in caplog.text
    assert says in caplog.text
    assert steps_taken == [1, 2, 3, 4, 5, *range(1, STEPS + 1)]


def test_another_task_from_the_same_model_does_not_go_on_from_this_ones_checkpoint(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=STEPS))
    at_step(fleet, 5)
    (kept,) = checkpoints(fleet)
    of_the_first = kept.read_bytes()
    fleet.coordinator.say(Withdraw("run/1", "round-closed"))
    fleet.coordinator.say(fleet.coordinator.task(2, MODEL, steps=STEPS))
    fleet.until(lambda: fleet.agent.job.task is not None and fleet.agent.job.task.round == 2)
    kept.write_bytes(of_the_first)
    fleet.restart()
    interrupted = payload(fleet)
    fleet.coordinator.payloads.clear()
    fleet.coordinator.say(replace(fleet.coordinator.task(3, MODEL, steps=STEPS), seed=2))
    assert payload(fleet) == interrupted


def test_no_checkpoint_is_written_where_none_is_wanted(fleet: Fleet) -> None:
    fleet.training = replace(ALWAYS, checkpoint_s=0.0)
    fleet.restart()
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=STEPS))
    at_step(fleet, 20)
    assert checkpoints(fleet) == []


def test_a_task_shorter_than_the_interval_writes_nothing(fleet: Fleet) -> None:
    fleet.training = TrainingSettings()
    fleet.restart()
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=STEPS))
    at_step(fleet, STEPS - 1)
    assert checkpoints(fleet) == []


def test_an_orderly_end_keeps_what_was_trained(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.training = TrainingSettings()
    fleet.restart()
    caplog.set_level("INFO")
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=10_000))
    at_step(fleet, 5)
    training = training_of(fleet)
    assert training is not None
    training._seconds = 30.0  # half of the way to the first checkpoint
    done = training.done
    fleet.agent.stop()
    fleet.restart()
    fleet.until(lambda: fleet.agent.job.phase == "training")
    assert f"goes on after step={done} train_s=30.0" in caplog.text


def test_a_disk_without_room_for_checkpoints_does_not_stop_training(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=STEPS))
    fleet.until(lambda: fleet.agent.job.phase == "training")
    fleet.store.blobs.limit_bytes = fleet.store.blobs.used_bytes() + 2000
    assert payload(fleet)
    assert "no checkpoint: limits.disk_mib has no room for" in caplog.text


def test_a_checkpoint_that_cannot_be_written_does_not_stop_training(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, disk: Disk) -> None:
        path.with_name(path.name + ".tmp").write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edge_agent.checkpoint.write_durably", full)
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=STEPS))
    assert payload(fleet)
    assert "no checkpoint: " in caplog.text
    assert "No space left on device; free disk space" in caplog.text
    assert list((fleet.folder / "state" / "blobs").glob("*.tmp")) == []


def test_work_that_is_done_and_waits_for_an_older_receipt_is_not_done_again(
    fleet: Fleet, steps_taken: list[int]
) -> None:
    fleet.training = TrainingSettings()
    fleet.restart()
    fleet.coordinator.deaf_to = (Offer,)
    fleet.coordinator.say(fleet.coordinator.task(1, MODEL, steps=3))
    fleet.until(lambda: bool(fleet.store.outbox()))
    fleet.coordinator.say(fleet.coordinator.task(2, MODEL, steps=5))
    fleet.until(lambda: fleet.agent.job.phase == "packing")
    assert len(checkpoints(fleet)) == 1
    fleet.restart()
    fleet.until(lambda: fleet.agent.job.phase == "packing")
    assert len(steps_taken) == 8
    fleet.coordinator.deaf_to = ()
    fleet.until(lambda: len(fleet.coordinator.payloads) == 2 and not fleet.store.outbox())


def test_an_agent_without_a_task_lets_go_of_an_old_checkpoint(fleet: Fleet) -> None:
    stray = fleet.folder / "state" / "blobs" / f"{'ab' * 32}.checkpoint"
    stray.write_bytes(b"left by a kill")
    fleet.restart()
    assert not stray.exists()
