"""Late and buffered updates where devices do not all see the same model: tiers, masks, differences, codecs by link."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.next_model import structure_of
from coordinator.rows import AcceptedUpdate
from coordinator.settings import DownlinkSettings, Settings, TierSettings
from coordinator.trust_settings import FoldSettings
from edge_agent.runtimes.engine import Vector
from protocol.layout import layout_of
from protocol.messages import Task
from protocol.width import narrowed, places
from sparse.codecs import decode_update, parse_codec
from tests.coordinator.simulation import Simulation
from tests.coordinator.test_fleet_mask import Fleet, RealAgent, fleet_of, settings_of

HALF = "tier-050"
SLOW = "dev-2"
BUFFERED = {"mode": "buffered", "buffer": 2}


def simulated(folder: Path, change: Callable[[Settings], Settings] = lambda s: s, **rounds: Any) -> Simulation:
    """Three devices, of which the last is slow."""
    wanted: dict[str, Any] = {"count": 8, "deadline_s": 400.0} | BUFFERED | rounds
    fleet = Simulation.make(folder, 0, tiers=TierSettings(select="rolling", assign={SLOW: HALF}), **wanted)
    fleet.kill()
    # The formulas below are of whole updates.
    fleet.settings = change(replace(fleet.settings, fold=FoldSettings(clip="none")))
    fleet.start()
    for i in range(3):
        fleet.add(f"dev-{i}").train_s = 35.0 if f"dev-{i}" == SLOW else 10.0
    return fleet


def model_at(fleet: Simulation, version: int) -> Vector:
    row = fleet.store._sql.execute("SELECT digest FROM models WHERE version = ?", (version,)).fetchone()
    return np.frombuffer(fleet.store.models.read(row[0]), "<f4").astype(np.float32)


def values_of(fleet: Simulation, update: AcceptedUpdate) -> tuple[Vector, Vector, np.ndarray[Any, Any]]:
    """What an update says of parameters and buffers, and where in the whole model its version says that they lie."""
    manifest = fleet.bundle.manifest
    seen = narrowed(manifest, update.variant)
    layout = layout_of(seen, update.variant)
    payload = fleet.store.updates.read(update.digest)
    parameters, buffers = decode_update(
        payload, layout.n_parameters, layout.n_buffers, layout.digest, parse_codec(update.codec)
    )
    where = np.arange(manifest.total)
    if update.variant == HALF:
        where = places(manifest, structure_of(fleet.store, update.number - 1).channels[HALF])
    return parameters, buffers, where


def refolded(fleet: Simulation, number: int) -> Vector:
    """A version made from the one before, value by value and without the fold."""
    model, updates = model_at(fleet, number - 1), fleet.store.accepted(number)
    newest = max(update.number for update in updates)
    widest = max(len(values_of(fleet, update)[2]) for update in updates if update.number == newest)
    total, weights = np.zeros(len(model)), np.zeros(len(model))
    for update in updates:
        parameters, buffers, where = values_of(fleet, update)
        counted = update.weight * (1.0 + number - update.number) ** -0.5
        telling = update.number == newest and len(where) == widest
        moved = np.concatenate([parameters, buffers] if telling else [parameters])
        for value, at in zip(moved, where, strict=False):
            total[at] += counted * np.float64(value)
            weights[at] += update.weight
    told = weights > 0
    model[told] = (model[told].astype(np.float64) + total[told] / weights[told]).astype(np.float32)
    return model


def test_a_late_tiers_update_lands_on_the_channels_of_its_own_version(tmp_path: Path) -> None:
    fleet = simulated(tmp_path)
    fleet.finish()
    late = [
        (number, update)
        for number in range(1, 9)
        for update in fleet.store.accepted(number)
        if update.device == SLOW and update.number < number
    ]
    assert late
    for number, update in late:
        then, now = (structure_of(fleet.store, version).channels[HALF] for version in (update.number - 1, number - 1))
        assert any(not np.array_equal(then[group], now[group]) for group in then), "its channels have changed"
    for number in range(1, 9):
        assert model_at(fleet, number).tobytes() == refolded(fleet, number).tobytes(), f"version {number}"
    fleet.store.close()


def test_a_structure_that_is_gone_from_the_disk_makes_a_late_update_a_stated_discard(tmp_path: Path) -> None:
    fleet = simulated(tmp_path, count=12)
    fleet.until(lambda: bool(fleet.agents[SLOW].outbox))
    (update,) = (task for task in fleet.store.carried() if task.device == SLOW)
    fleet.until(lambda: not fleet.store.carried() or SLOW not in {t.device for t in fleet.store.carried()})
    digest = fleet.store.structure(update.number - 1)
    assert digest is not None
    fleet.store.models.remove(digest)
    fleet.finish()
    (reason,) = fleet.store._sql.execute(
        "SELECT discarded FROM updates WHERE round = ? AND device = ?", (update.number, SLOW)
    ).fetchone()
    assert reason.startswith("structure-gone: ")
    fleet.store.close()


def test_a_late_device_still_fetches_the_model_that_it_was_told_of(tmp_path: Path) -> None:
    def compressed(settings: Settings) -> Settings:
        return replace(settings, downlink=DownlinkSettings("topk:0.1/int8"))

    fleet = simulated(tmp_path, compressed, late_rounds=100)
    slow = fleet.agents[SLOW]
    slow.train_s = 0.0
    fleet.until(lambda: slow.task is not None)
    fleet.broker.cut(SLOW)
    fleet.until(lambda: len(fleet.committed) >= 5)
    fleet.broker.restore(SLOW)
    task = slow.task
    assert task is not None
    assert not slow.chunks, "nothing of its model has come yet"
    fleet.until(lambda: task.name in slow.settled)
    assert slow.settled[task.name].verdict == "accepted"
    fleet.store.close()


@pytest.mark.parametrize("codec", ["auto", "topk:0.5/float16"])
def test_buffered_rounds_work_with_codecs_and_differences(codec: str, tmp_path: Path) -> None:
    def change(settings: Settings) -> Settings:
        training = replace(settings.training, codec=codec)
        limits = replace(settings.limits, device_bytes_per_day=10_000_000)
        return replace(settings, training=training, limits=limits, downlink=DownlinkSettings("topk:0.1/int8"))

    fleet = simulated(tmp_path, change, parameters=2000)
    fleet.finish()
    assert [event.devices for event in fleet.committed] == [2] * 8
    assert sum(event.late for event in fleet.committed) >= 1
    assert not fleet.rejected
    tasks = [body for body in fleet.agents["dev-0"].heard if isinstance(body, Task)]
    assert any(task.differences for task in tasks)
    fleet.store.close()


@pytest.fixture
def masked(tmp_path: Path) -> Iterator[Fleet]:
    settings = settings_of(tmp_path, 6, 2, report_every=2, refresh_every=1, final=0.5)
    fleet = fleet_of(tmp_path, replace(settings, rounds=replace(settings.rounds, over_select=1.5)), 3)
    yield fleet
    fleet.close()


def pause(agent: RealAgent) -> Callable[[], None]:
    """The agent does nothing until the returned function is called."""
    work = agent.work
    agent.work = lambda now: None  # type: ignore[method-assign]

    def go_on() -> None:
        agent.work = work  # type: ignore[method-assign]

    return go_on


def test_a_late_update_of_an_older_mask_is_folded_where_that_mask_was(masked: Fleet) -> None:
    fleet = masked
    slow = fleet.agents[SLOW]
    fleet.until(lambda: slow.agent.job.phase == "fetching")
    go_on = pause(slow)
    fleet.until(lambda: len(fleet.committed) >= 3)
    go_on()
    fleet.finish()
    late = [(n, u) for n in range(1, 7) for u in fleet.store.accepted(n) if u.number < n]
    assert [(u.device, u.number) for _, u in late] == [(SLOW, 1)]
    ((number, update),) = late
    then, now = fleet.mask(0), fleet.mask(number - 1)
    left_out = then & ~now
    assert left_out.any(), "the mask has changed meanwhile"
    before, after = model_at(fleet, number - 1), model_at(fleet, number)
    assert (after[: len(now)] != before[: len(now)])[left_out].any(), "the dense copy heard of it"
    assert update.task.version == 0
    assert not fleet.rejected


def test_a_masked_fleet_works_in_buffered_rounds(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, 8, 3, report_every=2, refresh_every=1, final=0.5)
    settings = replace(settings, rounds=replace(settings.rounds, mode="buffered", buffer=2))
    fleet = fleet_of(tmp_path, settings, 3)
    fleet.finish()
    assert [event.devices for event in fleet.committed] == [2] * 8
    assert sum(event.late for event in fleet.committed) >= 1
    assert not fleet.rejected
    fleet.close()
