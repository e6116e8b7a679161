"""The fleet without a hub that the benchmark trains: it learns, its bytes are its messages', its identities hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import algorithm_gossip, gossip_fleet
from benchmarks.algorithm_rows import Problem
from benchmarks.gossip_fleet import Plan, run, train
from edge_agent.data import Dataset
from edge_agent.runtimes.parameters import initial_model
from export import TrainingSpec
from export.bundle import write_bundle
from protocol.bundle import open_bundle

DEVICES, PARAMETERS = 6, 4 * 8 + 8 + 8 * 2 + 2
PLAN = Plan("gossip SGD", "ring", rounds=150, batch=8, rate=0.3)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Two classes; half of the devices hold one of them alone."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    spec = TrainingSpec(module, torch.randn(8, 4), torch.randint(0, 2, (8,)), "cross_entropy", ("accuracy",))
    folder: Path = tmp_path_factory.mktemp("gossip") / "bundle"
    write_bundle(spec, folder, line="gossip", backends=("portable",))
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40 * (DEVICES + 1), 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    x, y = x[np.argsort(y[: 40 * DEVICES], kind="stable")], y[: 40 * DEVICES]
    y = np.sort(y)
    held = rng.normal(size=(100, 4)).astype(np.float32)
    fleet = {f"device-{i}": Dataset((x[40 * i :][:40],), (y[40 * i :][:40],)) for i in range(DEVICES)}
    held_out = Dataset((held,), ((held[:, 0] > 0).astype(np.int64),))
    bundle = open_bundle(folder)
    return Problem("made", "by class", bundle, fleet, held_out, np.zeros((0, 100)), initial_model(bundle))


@pytest.mark.parametrize(
    "plan",
    [
        PLAN,
        replace(PLAN, momentum="local", rate=0.05),
        replace(PLAN, momentum="quasi-global", rate=0.05),
        replace(PLAN, exchange="choco", codec="topk:0.1/float16", gamma=0.3),
        replace(PLAN, exchange="relay", topology="binary-tree"),
    ],
    ids=["plain", "local momentum", "quasi-global momentum", "CHOCO", "RelaySum"],
)
def test_a_fleet_whose_devices_hold_one_class_each_learns_both(given: Problem, plan: Plan) -> None:
    row = run(given, plan, seed=1)
    assert row.accuracy_mean > 0.85
    assert row.accuracy_worst_device > 0.7


def test_choco_with_identity_compression_and_gamma_1_ends_where_exact_gossip_does(given: Problem) -> None:
    exact, sent = train(given, PLAN, seed=1)
    models, also = train(given, replace(PLAN, exchange="choco"), seed=1)
    np.testing.assert_allclose(models, exact, atol=1e-4)
    assert also > sent, "payloads have headers"


def test_bytes_are_those_a_device_sends_once_and_receives_from_each_neighbour(given: Problem) -> None:
    row = run(given, replace(PLAN, rounds=5), seed=1)
    assert row.bytes == 5 * 4 * PARAMETERS * (1 + 2)


def test_on_a_tree_bytes_are_those_of_both_ways_of_each_link(given: Problem) -> None:
    row = run(given, replace(PLAN, rounds=5, exchange="relay", topology="binary-tree"), seed=1)
    assert row.bytes == round(5 * 4 * PARAMETERS * 4 * (DEVICES - 1) / DEVICES)


def test_an_exchange_after_a_step_may_be_followed_by_others_and_each_costs_its_bytes(given: Problem) -> None:
    once, sent = train(given, replace(PLAN, rounds=20), seed=1)
    twice, also = train(given, replace(PLAN, rounds=20, exchanges=3), seed=1)
    assert also == 3 * sent
    assert np.std(twice, axis=0).max() < np.std(once, axis=0).max(), "devices agree better"


def test_the_mean_of_devices_own_models_is_a_third_figure(given: Problem) -> None:
    row = run(given, replace(PLAN, rounds=10), seed=1)
    assert row.own_mean is not None
    assert row.accuracy_worst_device <= row.own_mean
    assert "own_mean" not in row.published()


def test_the_rate_falls_to_a_tenth_at_half_and_at_three_quarters() -> None:
    plan = replace(PLAN, rounds=8, rate=1.0)
    assert [plan.rate_at(t) for t in range(8)] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_run_that_diverges_ends_with_models_that_are_finite(given: Problem) -> None:
    models, _ = train(given, replace(PLAN, rate=1e12, exchange="choco", gamma=0.5), seed=1)
    assert np.isfinite(models).all()


def test_a_data_set_that_gossip_is_not_compared_on_has_no_rows() -> None:
    assert list(algorithm_gossip.rows("fsdd", [1], True)) == []


def test_every_algorithm_has_a_rate_on_every_data_set_and_a_quick_version() -> None:
    for dataset in algorithm_gossip.DATASETS:
        assert all(plan.rate > 0 for plan in algorithm_gossip.plans(dataset))
        assert {gossip_fleet.quick(plan).rounds for plan in algorithm_gossip.plans(dataset)} == {8}
