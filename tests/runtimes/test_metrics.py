"""Metrics are means over examples, each checked by hand."""

import numpy as np
import pytest

from edge_agent.runtimes.metrics import accuracy, binary_accuracy, mae, measure, mse


def test_accuracy_counts_largest_scores_that_name_the_target() -> None:
    scores = np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]], np.float32)
    assert accuracy(scores, np.array([1, 0, 0, 1])) == 0.75


def test_accuracy_takes_classes_on_the_first_axis_after_the_batch() -> None:
    scores = np.zeros((2, 3, 4), np.float32)
    scores[:, 1] = 1.0
    assert accuracy(scores, np.ones((2, 4), np.int64)) == 1.0


def test_binary_accuracy_reads_logits_by_sign() -> None:
    assert binary_accuracy(np.array([[2.0], [-1.0], [0.5]]), np.array([[1.0], [0.0], [0.0]])) == pytest.approx(2 / 3)


def test_errors_are_means_over_all_values() -> None:
    output, target = np.array([[1.0, 2.0]], np.float32), np.array([[0.0, 4.0]], np.float32)
    assert (mae(output, target), mse(output, target)) == (1.5, 2.5)


def test_only_the_named_metrics_are_measured() -> None:
    one = np.ones((2, 1), np.float32)
    assert measure(("mse", "mae"), one, one) == {"mse": 0.0, "mae": 0.0}
    assert measure((), one, one) == {}
