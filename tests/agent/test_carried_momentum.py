"""Momentum of a real agent from round to round: kept when an update is accepted, and only then, through every kill."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.momentum import FILE, Memory, carried, settings_of, unpack_memory
from edge_agent.runtimes.engine import Vector
from protocol.layout import layout_of
from protocol.messages import OptimizerSpec, Task
from sparse.codecs import decode_update
from tests.agent.test_agent import Fleet, training_of
from tests.agent.test_variants import ONES, finish, made
from tests.tiny import TOTAL

QG = OptimizerSpec(name="qg", momentum=0.9, mu=0.5)
KEPT = OptimizerSpec(momentum=0.9, keep_momentum=True)
SECOND = (ONES * np.float32(0.9)).astype(np.float32)


def task(fleet: Fleet, round_: int, optimizer: OptimizerSpec, model: Vector = ONES, steps: int = 5) -> Task:
    return replace(fleet.coordinator.task(round_, model, steps=steps), optimizer=optimizer)


def remembered(fleet: Fleet, variant: str = "full") -> Memory | None:
    data = fleet.store.momentum(layout_of(fleet.coordinator.bundle.manifest, variant).digest)
    return None if data is None else unpack_memory(data)


def delta(fleet: Fleet, number: int) -> Vector:
    layout = layout_of(fleet.coordinator.bundle.manifest, "full")
    parameters, _ = decode_update(fleet.coordinator.payloads[number], TOTAL, 0, layout.digest)
    return parameters


def test_quasi_global_momentum_goes_on_from_what_the_fleet_did(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    fleet.coordinator.say(task(fleet, 1, QG))
    finish(fleet)
    first = remembered(fleet)
    assert first is not None
    assert (first.round, first.version, first.rate) == (1, 0, 2.5)
    assert first.base.tobytes() == ONES.tobytes()
    assert not first.vector.any()
    given = task(fleet, 2, QG, SECOND)
    fleet.coordinator.say(given)
    finish(fleet, 2)
    second = remembered(fleet)
    assert second is not None
    expected = carried(first, given, settings_of(QG), SECOND, None, 50)
    assert second.vector.tobytes() == expected.tobytes()
    np.testing.assert_allclose(expected, 0.5 * (ONES - SECOND) / 2.5, rtol=1e-5)
    # What an agent that remembers nothing sends of the same task is another step.
    alone = made(tmp_path / "alone")
    alone.coordinator.say(given)
    for blob in (SECOND, ONES):
        alone.coordinator.add(blob.astype("<f4").tobytes())
    finish(alone)
    assert not np.allclose(delta(alone, 0), delta(fleet, 1), rtol=1e-3)


def test_momentum_of_sgd_that_is_kept_goes_on_and_else_begins_anew(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    fleet.coordinator.say(task(fleet, 1, KEPT))
    finish(fleet)
    first = remembered(fleet)
    assert first is not None
    assert first.kind == "sgd"
    assert first.vector.any()
    assert not len(first.base)
    fleet.coordinator.say(task(fleet, 2, replace(KEPT, keep_momentum=None)))
    finish(fleet, 2)
    assert remembered(fleet) is None


@pytest.mark.parametrize("optimizer", [QG, KEPT])
def test_a_rejected_update_leaves_the_momentum_alone(tmp_path: Path, optimizer: OptimizerSpec) -> None:
    fleet = made(tmp_path)
    fleet.coordinator.say(task(fleet, 1, optimizer))
    finish(fleet)
    before = fleet.store.momentum(layout_of(fleet.coordinator.bundle.manifest, "full").digest)
    fleet.coordinator.reject = "norm"
    fleet.coordinator.say(task(fleet, 2, optimizer, SECOND))
    finish(fleet, 2)
    assert fleet.store.momentum(layout_of(fleet.coordinator.bundle.manifest, "full").digest) == before


@pytest.mark.parametrize("optimizer", [QG, KEPT])
def test_a_task_that_is_begun_anew_after_a_kill_gives_the_same_bits(tmp_path: Path, optimizer: OptimizerSpec) -> None:
    payloads = []
    for name, kills in (("whole", 0), ("killed", 2)):
        fleet = made(tmp_path / name)
        fleet.coordinator.say(task(fleet, 1, optimizer))
        finish(fleet)
        fleet.coordinator.say(task(fleet, 2, optimizer, SECOND, steps=4000))
        for _ in range(kills):
            fleet.until(lambda: (found := training_of(fleet)) is not None and found.done >= 3)  # noqa: B023
            fleet.restart()
            fleet.coordinator.announce()
        finish(fleet, 2)
        payloads.append(fleet.coordinator.payloads[1])
        fleet.store.close()
    assert payloads[0] == payloads[1]


def test_a_receipt_that_comes_while_the_next_task_is_trained_does_not_change_what_it_began_with(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    fleet.coordinator.say(task(fleet, 1, QG))
    finish(fleet)
    fleet.coordinator.say(task(fleet, 2, QG, SECOND, steps=10_000))
    fleet.until(lambda: (found := training_of(fleet)) is not None and found.done >= 3)
    laid = (tmp_path / "state" / FILE).read_bytes()
    with fleet.store.database:
        fleet.store.database.execute("DELETE FROM momentum")
    fleet.restart()
    fleet.coordinator.announce()
    fleet.until(lambda: (found := training_of(fleet)) is not None and found.done >= 3)
    assert (tmp_path / "state" / FILE).read_bytes() == laid
    training = training_of(fleet)
    assert training is not None
    assert training.live_state().optimizer.first_moment.any()
    fleet.store.close()


def test_a_device_that_is_told_to_train_another_variant_while_a_task_is_in_hand_begins_it_anew(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    fleet.coordinator.say(task(fleet, 1, QG, steps=10_000))
    fleet.until(lambda: (found := training_of(fleet)) is not None and found.done >= 3)
    fleet.training = replace(fleet.training, variant="bias")
    fleet.restart()
    fleet.coordinator.announce()
    fleet.until(lambda: (found := training_of(fleet)) is not None and found.done >= 1)
    training = training_of(fleet)
    assert training is not None
    n = layout_of(fleet.coordinator.bundle.manifest, "bias").n_parameters
    assert len(training.live_state().optimizer.first_moment) == n < TOTAL
    fleet.store.close()


def test_an_optimiser_that_this_agent_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    fleet.coordinator.say(task(fleet, 1, OptimizerSpec(name="lion")))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    report = fleet.coordinator.reports[0]
    assert (report.state, report.reason) == ("refused", "task")
    assert report.detail == "name: 'lion' must be one of sgd, adamw, qg"
    fleet.store.close()


def test_only_what_a_variant_trains_has_momentum(tmp_path: Path) -> None:
    fleet = made(tmp_path, variant="bias")
    fleet.coordinator.say(task(fleet, 1, QG))
    finish(fleet)
    found = remembered(fleet, "bias")
    assert found is not None
    layout = layout_of(fleet.coordinator.bundle.manifest, "bias")
    assert len(found.vector) == len(found.base) == layout.n_parameters < TOTAL
    fleet.store.close()
