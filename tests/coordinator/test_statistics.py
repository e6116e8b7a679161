"""Running statistics that late updates would take below zero."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from coordinator.statistics import kept_above_zero
from protocol.layout import layout_of
from protocol.manifest import FULL
from sparse.codecs import encode_update, parse_codec
from tests.coordinator.simulation import BUFFERS, Simulation, named, write_bundle


def test_a_variance_never_becomes_negative_and_a_mean_may(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "bundle", 20).manifest
    before = np.ones(manifest.total, np.float32)
    after = before.copy()
    after[20 : 20 + BUFFERS] = [-3.0, 0.25, 2.0]
    after[0] = -5.0
    kept = kept_above_zero(manifest, before, after)
    assert kept[20 : 20 + BUFFERS].tolist() == [0.5, 0.25, 2.0]
    assert kept[0] == -5.0, "a parameter may be anything"
    assert after[20] == -3.0, "what was handed in is not changed"


def test_a_mean_that_begins_at_zero_goes_where_it_belongs(tmp_path: Path) -> None:
    manifest = write_bundle(tmp_path / "bundle", 20).manifest
    tensors = [replace(t, name="norm.running_mean") if t.kind == "buffer" else t for t in manifest.tensors]
    means = SimpleNamespace(tensors=tensors)
    before = np.zeros(manifest.total, np.float32)
    after = before - 1
    assert kept_above_zero(means, before, after) is after  # type: ignore[arg-type]


BUFFERED: dict[str, Any] = {"count": 12, "mode": "buffered", "buffer": 1, "staleness": 0.0}


def test_a_buffered_fleet_of_late_updates_keeps_its_variances(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, 0, **BUFFERED)
    for name in "abc":
        fleet.add(f"dev-{name}")
    layout = layout_of(fleet.bundle.manifest, FULL)
    # Each takes most of what its base has, and three have the same base.
    taken = np.full(layout.n_buffers, -1.2, np.float32)
    payload, _ = encode_update(
        *(np.zeros(layout.n_parameters, np.float32), taken, np.zeros(layout.n_parameters, np.float32)),
        *(parse_codec("all/float32"), layout.digest),
    )
    for number, agent in enumerate(fleet.agents.values()):
        agent.train_s, agent.mangle = 10.0 + number, lambda offer, _: named(offer, payload)
    fleet.until(lambda: fleet.coordinator.finished)
    model = np.frombuffer(fleet.model(), "<f4")
    assert (model[20 : 20 + BUFFERS] > 0).all()
    assert (model[20 : 20 + BUFFERS] < 1).all()
