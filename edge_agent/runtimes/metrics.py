"""Metrics over a batch, as means over its examples, in NumPy."""

from collections.abc import Callable, Mapping

import numpy as np

from edge_agent.runtimes.engine import Array
from protocol.manifest import MetricName


def accuracy(output: Array, target: Array) -> float:
    """Share of places where the largest of the scores (axis 1) is the target class."""
    return float(np.mean(output.argmax(axis=1) == target))


def binary_accuracy(output: Array, target: Array) -> float:
    """Share of places where a logit's sign says what the target (0 or 1) says."""
    return float(np.mean((output > 0) == (target > 0.5)))


def mae(output: Array, target: Array) -> float:
    """Mean absolute error."""
    return float(np.mean(np.abs(output - target), dtype=np.float64))


def mse(output: Array, target: Array) -> float:
    """Mean squared error."""
    return float(np.mean(np.square(output - target), dtype=np.float64))


METRICS: Mapping[MetricName, Callable[[Array, Array], float]] = {
    "accuracy": accuracy,
    "binary_accuracy": binary_accuracy,
    "mae": mae,
    "mse": mse,
}


def measure(names: tuple[MetricName, ...], output: Array, target: Array) -> dict[str, float]:
    """The named metrics of the first output against the first target."""
    return {name: METRICS[name](output, target) for name in names}
