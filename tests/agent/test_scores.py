"""A device that learns a mask over frozen weights: what moves, what it sends, and that a kill changes no bit of it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.data import Dataset
from edge_agent.runtimes.engine import Batch, Engine, Vector
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.scores import ScoreEngine, first_scores, under_likeliest
from edge_agent.training import LocalTraining, Recipe
from protocol.layout import maskable_layout
from protocol.messages import Need, Offer, OptimizerSpec, Task
from sparse.codecs import BALLOT, ballot_bytes, decode_ballot
from sparse.masks import Mask
from sparse.votes import pack_chances, unpack_chances
from tests.agent.test_agent import Fleet
from tests.agent.test_variants import made
from tests.tiny import CLASSES, write_bundle

FEATURES = 21
D = CLASSES * FEATURES
ADAM = OptimizerSpec("adamw")
WEIGHTS = np.random.default_rng(3).normal(size=D + CLASSES).astype(np.float32)
CHANCES = unpack_chances(pack_chances(np.full(D, 0.9, np.float32)))


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    bundle = write_bundle(tmp_path / "bundle", features=FEATURES, values=WEIGHTS)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, FEATURES)).astype(np.float32)
    one = made(tmp_path, bundle)
    np.savez(tmp_path / "shard.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    return one


def task(fleet: Fleet, number: int, chances: Vector = CHANCES, steps: int = 10) -> Task:
    told = fleet.coordinator.add(pack_chances(chances))
    given = fleet.coordinator.task(number, WEIGHTS, codec=BALLOT, steps=steps)
    return replace(given, chances=told, variant="full", optimizer=ADAM, learning_rate=0.3)


def finish(fleet: Fleet, number: int = 1) -> Mask:
    fleet.until(lambda: len(fleet.coordinator.payloads) == number and not fleet.store.outbox())
    layout = maskable_layout(fleet.coordinator.bundle.manifest)
    return decode_ballot(fleet.coordinator.payloads[-1], D, layout.digest)


def test_a_device_sends_ceil_d_over_8_bytes_of_mask(fleet: Fleet) -> None:
    fleet.coordinator.say(task(fleet, 1))
    finish(fleet)
    (payload,) = fleet.coordinator.payloads
    assert len(payload) == ballot_bytes(D) == 20 + -(-D // 8)
    offer = fleet.coordinator.of(Offer)[0]
    assert isinstance(offer, Offer)
    assert (offer.codec, offer.blob.size) == (BALLOT, len(payload))


def test_of_a_round_a_device_fetches_the_chances_alone_once_it_has_the_weights(fleet: Fleet) -> None:
    fleet.coordinator.say(task(fleet, 1))
    finish(fleet)
    before = len(fleet.coordinator.of(Need))
    second = task(fleet, 2, unpack_chances(pack_chances(np.full(D, 0.7, np.float32))))
    fleet.coordinator.say(second)
    finish(fleet, 2)
    asked = [need.digest for need in fleet.coordinator.of(Need)[before:] if isinstance(need, Need)]
    assert second.chances is not None
    assert asked == [second.chances.digest]
    assert second.chances.size == D


def test_bits_survive_a_kill_at_any_turn(fleet: Fleet, tmp_path: Path) -> None:
    given = task(fleet, 1, steps=40)
    fleet.coordinator.say(given)
    expected = finish(fleet)
    payload = fleet.coordinator.payloads[0]
    (tmp_path / "killed").mkdir()
    other = made(tmp_path / "killed", fleet.coordinator.bundle)
    (tmp_path / "killed" / "shard.npz").write_bytes((tmp_path / "shard.npz").read_bytes())
    other.coordinator.blobs |= fleet.coordinator.blobs
    other.coordinator.say(given)
    for _ in range(12):
        other.turn()
        other.restart()
        other.coordinator.say(given)
    np.testing.assert_array_equal(finish(other), expected)
    assert set(other.coordinator.payloads) == {payload}


@pytest.mark.parametrize("size", [D - 1, D + 1])
def test_chances_of_another_number_of_weights_are_refused_before_they_are_fetched(fleet: Fleet, size: int) -> None:
    fleet.coordinator.say(task(fleet, 1, np.full(size, 0.9, np.float32)))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    (report,) = fleet.coordinator.reports
    assert (report.state, report.reason) == ("refused", "masking")
    assert f"{size} chances where {D} weights may be masked" in report.detail


def trained(engine: Engine, manifest: object, weights: Vector, chances: Vector, steps: int = 30) -> LocalTraining:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, FEATURES)).astype(np.float32)
    data = Dataset((x,), ((x[:, 0] > 0).astype(np.int64),))
    recipe = Recipe(steps, 0, 10, 0.3, OptimizerSettings("adamw"), 5)
    scores = ScoreEngine(engine, manifest, weights)  # type: ignore[arg-type]
    local = LocalTraining(scores, manifest, data, recipe, first_scores(manifest, chances))  # type: ignore[arg-type]
    local.advance(float("inf"))
    return local


class Watched:
    """An engine that says what it was shown."""

    def __init__(self, engine: Engine, look: Callable[[Vector], None]) -> None:
        self._engine, self._look, self.name = engine, look, engine.name
        self.evaluate = engine.evaluate

    def step(self, model: Vector, batch: Batch, seed: int) -> object:
        self._look(model)
        return self._engine.step(model, batch, seed)


def test_every_step_sees_frozen_weights_or_zeros_and_all_that_may_not_be_masked(fleet: Fleet) -> None:
    seen, bundle, weights = list[Vector](), fleet.coordinator.bundle, WEIGHTS.copy()
    engine = Watched(NumpyEngine(bundle), lambda model: seen.append(model.copy()))
    trained(engine, bundle.manifest, weights, CHANCES)  # type: ignore[arg-type]
    assert weights.tobytes() == WEIGHTS.tobytes()
    assert len({model.tobytes() for model in seen}) > 3, "masks move"
    for model in seen:
        assert model[D:].tobytes() == WEIGHTS[D:].tobytes()
        zeros = model[:D] == 0
        assert model[:D][~zeros].tobytes() == WEIGHTS[:D][~zeros].tobytes()


def test_scores_of_what_may_not_be_masked_and_of_buffers_never_move(fleet: Fleet) -> None:
    manifest = fleet.coordinator.bundle.manifest
    scores = trained(NumpyEngine(fleet.coordinator.bundle), manifest, WEIGHTS, CHANCES).result().model
    assert not scores[D:].any()
    assert np.abs(scores[:D] - first_scores(manifest, CHANCES)[:D]).max() > 0.1


def test_chances_near_1_give_the_frozen_model(fleet: Fleet) -> None:
    manifest, highest = fleet.coordinator.bundle.manifest, unpack_chances(bytes([255]) * D)
    assert under_likeliest(manifest, WEIGHTS, highest).tobytes() == WEIGHTS.tobytes()
    lowest = under_likeliest(manifest, WEIGHTS, unpack_chances(bytes(D)))
    assert not lowest[:D].any()
    assert lowest[D:].tobytes() == WEIGHTS[D:].tobytes()


def test_what_is_learnt_is_better_than_the_frozen_weights(fleet: Fleet) -> None:
    bundle = fleet.coordinator.bundle
    rng = np.random.default_rng(9)
    x = rng.normal(size=(500, FEATURES)).astype(np.float32)
    fresh, engine = Batch((x,), ((x[:, 0] > 0).astype(np.int64),)), NumpyEngine(bundle)
    learnt = trained(engine, bundle.manifest, WEIGHTS, CHANCES, steps=200).result().model
    masked = ScoreEngine(engine, bundle.manifest, WEIGHTS).evaluate(learnt, fresh)
    assert masked.metrics["accuracy"] > engine.evaluate(WEIGHTS, fresh).metrics["accuracy"] + 0.1
