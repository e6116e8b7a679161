"""The fleet with a hub that the benchmark trains, and its frame: steps, bytes, what is kept, merged and drawn."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import algorithms
from benchmarks.algorithm_hub import SETTINGS, adaptive, plans
from benchmarks.algorithm_plot import save_plot
from benchmarks.algorithm_rows import Problem, Row, over_seeds
from benchmarks.hub_fleet import Plan, run
from coordinator.local_steps import BudgetSettings, StepRule
from edge_agent.data import Dataset
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model
from export import TrainingSpec
from export.bundle import write_bundle
from protocol.bundle import open_bundle

DEVICES, STEPS = 4, 24
ROW = Row("data", "split", "hub", "SGD", "all/float32", 10, 100, 0.5, 0.0, 0.25)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Two classes; half of the devices hold one of them alone."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    spec = TrainingSpec(module, torch.randn(8, 4), torch.randint(0, 2, (8,)), "cross_entropy", ("accuracy",))
    folder: Path = tmp_path_factory.mktemp("hub") / "bundle"
    write_bundle(spec, folder, line="hub-test", backends=("portable",))
    bundle = open_bundle(folder)
    rng = np.random.default_rng(1)

    def drawn(label: int, n: int) -> Dataset:
        x = rng.normal(2.0 * label - 1.0, 1.0, (n, 4)).astype(np.float32)
        return Dataset((x,), (np.full(n, label, np.int64),))

    fleet = {f"device-{i}": drawn(i % 2, 40) for i in range(DEVICES)}
    held = [drawn(label, 50) for label in (0, 1)]
    held_out = Dataset((np.concatenate([d.inputs[0] for d in held]),), (np.concatenate([d.targets[0] for d in held]),))
    shares = np.stack([(held_out.targets[0] == i % 2) / 50.0 for i in range(DEVICES)])
    return Problem("two", "one label each", bundle, fleet, held_out, shares, initial_model(bundle))


def plan(interval: int, post_local: int = 0, **changes: object) -> Plan:
    made = Plan("local SGD", STEPS, StepRule(interval, post_local, BudgetSettings(), 1000), 8, 0.2)
    return replace(made, **changes)  # type: ignore[arg-type]


def test_fewer_rounds_send_fewer_bytes_and_all_take_the_same_steps(given: Problem) -> None:
    every, fourth, post = run(given, plan(1), 1), run(given, plan(4), 1), run(given, plan(4, STEPS // 2 + 1), 1)
    assert (every.rounds, fourth.rounds, post.rounds) == (STEPS, STEPS // 4, STEPS // 2 + STEPS // 8)
    assert fourth.bytes == pytest.approx(every.bytes / 4, rel=0.05)
    assert fourth.bytes < post.bytes < every.bytes


@pytest.mark.parametrize("optimizer", [OptimizerSettings("qg", momentum=0.9), OptimizerSettings(momentum=0.9)])
def test_the_fleet_learns_what_no_device_of_it_could(given: Problem, optimizer: OptimizerSettings) -> None:
    found = run(given, plan(2, optimizer=optimizer, learning_rate=0.1), 1)
    assert found.accuracy_mean > 0.9
    assert found.accuracy_worst_device > 0.8


def test_a_budget_of_bytes_is_kept(given: Problem) -> None:
    every = run(given, plan(1), 1)
    budget = BudgetSettings(STEPS, DEVICES * every.bytes / 3 / (1 << 20))
    found = run(given, plan(1, rule=StepRule(STEPS, 0, budget, 1000)), 1)
    assert found.bytes <= every.bytes / 3 * 1.1
    assert found.rounds < every.rounds / 2


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_post_local_sgd_communicates_at_most_half_as_often_as_h_1(name: str) -> None:
    post = next(p for p in plans(SETTINGS[name], quick=False) if p.algorithm.startswith("post-local"))
    rule, done, rounds = post.rule, 0, 0
    while done < post.steps:
        rounds += 1
        done += rule.local_steps if rounds >= rule.post_local else 1
    assert rounds <= post.steps / 2
    assert adaptive(SETTINGS[name], 1 << 20, quick=False).rule.budget.mib == post.steps / 4


def test_rows_of_seeds_become_one_with_their_spread() -> None:
    found = over_seeds([ROW, replace(ROW, algorithm="other"), replace(ROW, accuracy_mean=0.7, bytes=200)])
    assert [row.algorithm for row in found] == ["SGD", "other"]
    assert (found[0].accuracy_mean, found[0].bytes, found[0].accuracy_worst_device) == (0.6, 150, 0.25)
    assert found[0].accuracy_sd == pytest.approx(0.1414, abs=1e-4)


def test_what_is_finished_is_kept_and_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def rows(dataset: str, seeds: tuple[int, ...], quick: bool) -> list[Row]:
        assert not quick
        asked.append((dataset, seeds[0]))
        return [replace(ROW, dataset=dataset, accuracy_mean=0.1 * seeds[0])]

    monkeypatch.setattr(algorithms, "PARTS", {"hub": rows})
    arguments = ["--json", "--data", "hapt", "--kept", str(tmp_path / "kept"), "--plot", str(tmp_path / "plot.svg")]
    algorithms.main([*arguments, "--seeds", "1"])
    algorithms.main([*arguments, "--seeds", "3"])
    assert asked == [("hapt", 1), ("hapt", 2), ("hapt", 3)]
    said = json.loads(capsys.readouterr().out.rpartition("\n{\n")[2].join(("{\n", "")))
    assert said["rows"][0]["accuracy_mean"] == pytest.approx(0.2)
    assert set(said["rows"][0]) == {
        "dataset",
        "split",
        "topology",
        "algorithm",
        "codec",
        "rounds",
        "bytes",
        "accuracy_mean",
        "accuracy_sd",
        "accuracy_worst_device",
    }
    assert (tmp_path / "plot.svg").read_text().startswith("<?xml")


def test_the_same_rows_give_the_same_plot(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        save_plot([ROW, replace(ROW, topology="ring", bytes=1000)], tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
