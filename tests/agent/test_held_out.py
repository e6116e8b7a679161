"""What a device holds out of its own data: drawn by places and a seed, never trained on, tried before training."""

from pathlib import Path

import numpy as np
import pytest

from edge_agent.data import Dataset, DataSettings, load
from edge_agent.datasets.examples import Column
from edge_agent.held_out import divided, held_places, measured
from edge_agent.runtimes.engine import Batch, Evaluation
from edge_agent.runtimes.numpy_reference import NumpyEngine
from protocol.messages import HeldOut, Offer
from protocol.transport import MemoryBroker
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_agent import Fleet
from tests.agent.test_variants import ONES, finish
from tests.tiny import write_bundle, write_shard


def fleet_of(folder: Path, data: DataSettings) -> Fleet:
    bundle = write_bundle(folder / "bundle")
    write_shard(folder / "shard.npz")
    broker = MemoryBroker()
    fleet = Fleet(folder, broker, FakeCoordinator(broker, bundle), None, None, data=data)  # type: ignore[arg-type]
    fleet.start(folder)
    return fleet


def offered(fleet: Fleet, rounds: int = 1) -> Offer:
    for number in range(1, rounds + 1):
        fleet.coordinator.say(fleet.coordinator.task(number, ONES))
        finish(fleet, number)
    offer = fleet.coordinator.of(Offer)[-1]
    assert isinstance(offer, Offer)
    return offer


def test_about_the_share_is_held_out_and_the_same_of_data_that_grew() -> None:
    held = held_places(20_000, 0.1, 7)
    assert 0.09 < held.mean() < 0.11
    assert (held_places(30_000, 0.1, 7)[:20_000] == held).all()
    assert (held_places(20_000, 0.1, 8) != held).any()
    assert not held_places(100, 0.0, 7).any()


@pytest.mark.parametrize("kept", [None, np.arange(10, 60)])
def test_what_is_held_out_and_what_is_trained_on_are_all_and_apart(kept: np.ndarray | None, tmp_path: Path) -> None:
    x, y = np.arange(200, dtype=np.float32).reshape(100, 2), np.arange(100)
    columns = (Column((x,), x.dtype, kept=kept),), (Column((y,), y.dtype, kept=kept),)
    for dataset in (Dataset(*columns), Dataset((x,), (y,))):
        manifest = write_bundle(tmp_path / "bundle").manifest
        trained, held = divided(dataset, DataSettings(path="x", hold_out=0.3), manifest, tmp_path)
        assert held is not None
        places = [np.asarray(part.targets[0][np.arange(len(part))]) for part in (trained, held)]
        everything = dataset.targets[0][np.arange(len(dataset))]
        assert sorted(np.concatenate(places).tolist()) == sorted(np.asarray(everything).tolist())
        np.testing.assert_array_equal(held.inputs[0][np.arange(len(held))], x[places[1]])


def test_loss_and_accuracy_are_means_over_examples_whatever_the_batches() -> None:
    x, y = np.arange(130, dtype=np.float32), np.arange(130) % 2

    def evaluate(batch: Batch) -> Evaluation:
        return Evaluation(float(batch.inputs[0].mean()), {"accuracy": float(batch.targets[0].mean())}, len(batch))

    assert measured(evaluate, Dataset((x,), (y,))) == HeldOut(130, 64.5, 0.5)
    no_accuracy = measured(lambda b: Evaluation(1.0, {"mae": 3.0}, len(b)), Dataset((x,), (y,)))
    assert no_accuracy == HeldOut(130, 1.0, None)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_is_not_told_for_the_update_would_be_refused_with_it(loss: float) -> None:
    x, y = np.arange(130, dtype=np.float32), np.arange(130) % 2

    def evaluate(batch: Batch) -> Evaluation:
        return Evaluation(loss if batch.inputs[0][0] else 0.5, {"accuracy": 0.5}, len(batch))

    assert measured(evaluate, Dataset((x,), (y,))) is None


def test_an_update_says_how_the_tasks_model_did_on_what_its_device_holds_out(tmp_path: Path) -> None:
    settings = DataSettings(path="shard.npz", hold_out=0.25, hold_out_seed=3)
    fleet = fleet_of(tmp_path, settings)
    offer = offered(fleet)
    bundle = fleet.coordinator.bundle
    every = load(DataSettings(path="shard.npz"), bundle.manifest, tmp_path)
    trained, held = divided(every, settings, bundle.manifest, tmp_path)
    assert held is not None
    engine = NumpyEngine(bundle, "full")
    assert offer.held_out == measured(lambda batch: engine.evaluate(ONES, batch), held)
    assert offer.examples == len(trained) == len(every) - len(held)
    assert offer.held_out is not None
    assert offer.held_out.accuracy is not None
    fleet.store.close()


def test_other_files_can_be_held_out_and_without_any_an_update_says_nothing(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path / "files", DataSettings(path="shard.npz", hold_out_path="shard.npz"))
    offer = offered(fleet)
    assert offer.held_out is not None
    assert offer.held_out.examples == offer.examples
    fleet.store.close()
    plain = fleet_of(tmp_path / "plain", DataSettings(path="shard.npz"))
    assert offered(plain).held_out is None
    plain.store.close()


@pytest.mark.parametrize(
    "given",
    [{"hold_out": 1.0}, {"hold_out": -0.1}, {"hold_out_seed": -1}, {"hold_out_path": "y", "hold_out": 0.1}],
)
def test_a_share_out_of_range_is_refused(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="hold_out"):
        DataSettings(path="x", **given)  # type: ignore[arg-type]
