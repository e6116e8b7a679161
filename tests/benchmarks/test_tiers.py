"""The fleet of tiers that the benchmark emulates: who is in it, what a round lasts, and that it learns."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import tiers
from benchmarks.tier_fleet import Member, Schedule, run, wall_s
from devices.datasets import Dataset as Labelled
from edge_agent.data import Dataset
from edge_agent.runtimes.parameters import initial_model
from export import TrainingSpec
from export.bundle import write_bundle
from protocol.bundle import Bundle, open_bundle
from protocol.manifest import FULL
from sparse.widths import EXPLORED

CLIENTS = 9
SCHEDULE = Schedule(rounds=6, steps=4, batch_size=8, learning_rate=0.1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    spec = TrainingSpec(module, torch.randn(8, 4), torch.randint(0, 2, (8,)), "cross_entropy", ("accuracy",))
    folder: Path = tmp_path_factory.mktemp("tiers") / "bundle"
    write_bundle(spec, folder, line="tiers", backends=("portable",), tiers=tiers.SHARES)
    return open_bundle(folder)


def labelled() -> Labelled:
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40 * CLIENTS, 4)).astype(np.float32)
    people = np.repeat(np.arange(CLIENTS), 40)
    return Labelled("made", x, (x[:, 0] > 0).astype(np.int64), people, people == 0, 2)


@pytest.mark.parametrize("name", list(tiers.FLEETS))
def test_every_fleet_learns(bundle: Bundle, name: str) -> None:
    data = labelled()
    clients, held_out = tiers.clients_of(data, validate=False)
    fleet = tiers.fleet_of(name, data, clients, 1, tiers.classes_of(name, bundle.manifest, SCHEDULE))
    test = Dataset((data.x[held_out],), (data.y[held_out],))
    outcome = run(bundle, initial_model(bundle), fleet, tiers.FLEETS[name], SCHEDULE, test, 1)
    assert outcome.accuracy > 0.8
    assert {tier: len(found) for tier, found in outcome.step_s.items()} == {
        tier: 24 * sum(m.tier == tier for m in fleet) for tier in {m.tier for m in fleet}
    }


def test_a_fleet_of_whole_models_is_the_same_whatever_channels_tiers_would_have(bundle: Bundle) -> None:
    data = labelled()
    clients, held_out = tiers.clients_of(data, validate=False)
    fleet = tiers.fleet_of("all 1.0", data, clients, 1, tuple((FULL, s) for _, s in tiers.CLASSES))
    test = Dataset((data.x[held_out],), (data.y[held_out],))
    models = [
        run(bundle, initial_model(bundle), fleet, mode, SCHEDULE, test, 1).model for mode in ("static", "rolling")
    ]
    assert models[0].tobytes() == models[1].tobytes()


def test_the_same_third_of_the_clients_is_fast_in_every_fleet() -> None:
    data = labelled()
    clients, _ = tiers.clients_of(data, validate=False)
    whole, mixed, fast = (tiers.fleet_of(n, data, clients, 3) for n in ("all 1.0", "tiers, static", "fast third alone"))
    assert [m.slowness for m in whole] == [m.slowness for m in mixed]
    assert [m.tier for m in mixed[:3]] == [FULL, "tier-050", "tier-025"]
    assert [m.name for m in fast] == [m.name for m in whole if m.slowness == 1.0]


def test_devices_are_assigned_as_the_coordinator_would(bundle: Bundle) -> None:
    assigned = tiers.classes_of("tiers, as assigned", bundle.manifest, SCHEDULE)
    assert [slowness for _, slowness in assigned] == [1.0, 2.2, 4.5]
    assert [tier for tier, _ in assigned[:2]] == [FULL, FULL]
    assert assigned[2][0] != FULL
    assert {tier for tier, _ in tiers.classes_of("all 1.0", bundle.manifest, SCHEDULE)} == {FULL}


def test_settings_are_chosen_without_what_is_held_out_for_the_end() -> None:
    data = labelled()
    clients, validation = tiers.clients_of(data, validate=True)
    seen = np.concatenate([*clients, validation])
    assert not data.test[seen].any()
    assert len(np.unique(seen)) == len(seen) == len(data.train_indices)


def test_a_round_lasts_as_long_as_its_slowest_device() -> None:
    none = Dataset((np.zeros((1, 1), np.float32),), (np.zeros(1, np.int64),))
    fleet = [Member("a", none, FULL, 1.0), Member("b", none, "tier-025", 4.5)]
    assert wall_s(fleet, SCHEDULE, {FULL: 0.01, "tier-025": 0.002}) == pytest.approx(24 * 0.01)
    assert wall_s(fleet, SCHEDULE, {FULL: 0.01, "tier-025": 0.004}) == pytest.approx(24 * 0.018)


def test_the_schedule_explores_as_the_coordinator_does() -> None:
    assert Schedule(1, 1, 1, 0.1).explored == EXPLORED
