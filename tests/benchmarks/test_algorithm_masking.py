"""The fleet that votes on a mask in the benchmark: it learns, its bytes are its messages', and its weights stay."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.algorithm_masking import SETTINGS, frozen, pretrained
from benchmarks.algorithm_rows import Problem
from benchmarks.vote_fleet import Plan, run
from edge_agent.data import Dataset
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.parameters import initial_model
from export import TrainingSpec
from export.bundle import write_bundle
from protocol.bundle import open_bundle
from protocol.layout import maskable_layout

PLAN = Plan("masks", rounds=8, local_steps=12, batch_size=8, keep=0.8, rate=0.3, vote_rate=0.5)
INPUTS, HIDDEN, CLASSES = 6, 16, 2


def drawn(seed: int, n: int, *, flipped: bool) -> Dataset:
    x = np.random.default_rng(seed).normal(size=(n, INPUTS)).astype(np.float32)
    return Dataset((x,), ((x[:, 1 if flipped else 0] > 0).astype(np.int64),))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Problem:
    """Two of six devices are asked about another number than the rest: what the weights were trained for."""
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    spec = TrainingSpec(module, torch.randn(8, INPUTS), torch.randint(0, 2, (8,)), "cross_entropy", ("accuracy",))
    folder: Path = tmp_path_factory.mktemp("masking") / "bundle"
    write_bundle(spec, folder, line="masking", backends=("portable",))
    fleet = {f"device-{i}": drawn(i, 60, flipped=i % 3 == 0) for i in range(6)}
    held = drawn(99, 300, flipped=False)
    bundle = open_bundle(folder)
    made = Problem("made", "by number", bundle, fleet, held, np.full((1, 300), 1 / 300), initial_model(bundle))
    settings = replace(SETTINGS["hapt"], steps=150)
    return pretrained(made, settings, 1)


def test_a_mask_over_weights_of_another_task_is_better_than_the_weights(given: Problem) -> None:
    before: Vector = given.initial.copy()
    row = run(given, PLAN, 1)
    assert row.accuracy_mean > frozen(given).accuracy_mean + 0.1
    assert given.initial.tobytes() == before.tobytes()


def test_the_last_layer_has_no_mask_and_a_device_sends_a_bit_for_each_other_weight(given: Problem) -> None:
    assert maskable_layout(given.manifest).n_parameters == INPUTS * HIDDEN
    one, two = run(given, replace(PLAN, rounds=1), 1), run(given, replace(PLAN, rounds=2), 1)
    # The weights are fetched once.
    assert one.bytes - (two.bytes - one.bytes) > 4 * given.manifest.total


def test_the_devices_that_the_weights_were_trained_on_are_not_of_the_fleet(given: Problem) -> None:
    assert sorted(given.fleet) == ["device-1", "device-2", "device-4", "device-5"]
