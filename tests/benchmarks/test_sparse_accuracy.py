"""The benchmark of sparse accuracy: rows, rules, splits, plot, and a run of the agent's own training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from benchmarks.harness import Row
from benchmarks.sparse_accuracy import DENSE, METHODS, SPARSITIES, _cells, row_of, rule_of
from benchmarks.sparse_plot import save_plot
from benchmarks.sparse_training import TASKS, Task, bundle_of, engine_of, initial, split_of, trained_accuracy
from devices.datasets import DATASETS
from edge_agent.runtimes.parameters import initial_model
from protocol.errors import ConfigurationError


def digits_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10))


DIGITS = Task("digits", digits_net, ("1.weight",), 120, 32, 0.1, 1e-4)


def test_a_row_has_the_documented_keys_with_mean_and_sample_deviation() -> None:
    row = row_of("fashion", "dpf", 0.9, [0.88, 0.89, 0.90])
    assert list(row) == ["dataset", "method", "sparsity", "accuracy_mean", "accuracy_sd", "seeds"]
    assert (row["accuracy_mean"], row["accuracy_sd"], row["seeds"]) == (0.89, 0.01, 3)
    assert row_of("fashion", "dpf", 0.9, [0.88])["accuracy_sd"] == 0.0


def test_every_method_is_measured_at_every_sparsity_and_dense_once() -> None:
    cells = _cells((DENSE, *METHODS))
    assert cells[0] == (DENSE, 0.0)
    assert set(cells[1:]) == {(m, s) for m in METHODS for s in SPARSITIES}
    assert len(cells) == 13


def test_all_masks_rest_from_the_second_decay_on() -> None:
    for method in METHODS:
        rule = rule_of(DIGITS, method, 0.9)
        assert rule is not None
        assert (rule.until, rule.sparsity) == (90, 0.9) == (DIGITS.decay_at[1], 0.9)
    assert rule_of(DIGITS, DENSE, 0.0) is None


@pytest.mark.parametrize("task", [DIGITS, TASKS["fashion-60k"]], ids=lambda task: task.dataset)
def test_validation_measures_on_nothing_that_is_held_out_and_trains_on_none_of_it(task: Task) -> None:
    try:
        data = DATASETS[task.dataset]()
    except ConfigurationError as error:
        pytest.skip(f"data not at hand: {error}")
    held = {row.tobytes() for row in data.x[data.test]}
    validation, final = (split_of(task, validation=flag) for flag in (True, False))
    assert len(final.measured) == data.test.sum()
    assert len(validation.train) + len(validation.measured) == len(final.train)
    repeated = {row.tobytes() for row in data.x[~data.test]} & held
    for part in (validation.train, validation.measured, final.train):
        assert {row.tobytes() for row in part.inputs[0]} & held <= repeated


def test_a_task_may_use_a_part_of_the_training_examples_alone() -> None:
    few, every = (split_of(replace(DIGITS, examples=n), validation=False) for n in (100, None))
    assert len(few.train) == 100
    np.testing.assert_array_equal(few.train.inputs[0], every.train.inputs[0][:100])
    assert len(few.measured) == len(every.measured)


def test_a_seed_begins_where_torch_begins(tmp_path: Path) -> None:
    bundle = bundle_of(DIGITS, tmp_path / "bundle")
    np.testing.assert_array_equal(initial(DIGITS, bundle, 3), initial(DIGITS, bundle, 3))
    assert (initial(DIGITS, bundle, 3) != initial(DIGITS, bundle, 4)).any()
    assert initial(DIGITS, bundle, 3).shape == initial_model(bundle).shape


def test_training_learns_with_every_method(tmp_path: Path) -> None:
    bundle = bundle_of(DIGITS, tmp_path / "bundle")
    engine, split = engine_of(bundle), split_of(DIGITS, validation=True)
    for method in (DENSE, *METHODS):
        rule = rule_of(DIGITS, method, 0.8)
        assert trained_accuracy(DIGITS, bundle, engine, split, rule, 1) > 0.6
    short = replace(DIGITS, steps=1)
    assert trained_accuracy(short, bundle, engine, split, None, 1) < 0.6


def test_the_plot_is_an_svg_that_names_every_method_and_is_the_same_for_the_same_rows(tmp_path: Path) -> None:
    rows: list[Row] = [row_of("fashion", m, s, [0.8, 0.9]) for m, s in _cells((DENSE, *METHODS))]
    for name in ("one.svg", "two.svg"):
        save_plot(rows, tmp_path / name)
    said = (tmp_path / "one.svg").read_text()
    assert all(method in said for method in METHODS)
    assert said == (tmp_path / "two.svg").read_text()
