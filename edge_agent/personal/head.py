"""Softmax regression on a model's features: a device's own last layer, trained from the fleet's.

FedTHE (Jiang & Lin, "Test-Time Robust Personalization for Federated Learning", ICLR 2023, section 4) trains a head of
each device's own on frozen features. Where we depart:

- It begins at the fleet's head every time, so that it follows from the model, the data and the settings alone; theirs
  begins at random and goes on from round to round. Zero steps are the fleet's head.
- It has a bias, as the fleet's has; theirs has none.
- A rate is a share of the largest that cannot overshoot: softmax regression is curved by at most half the features'
  mean square (Boehning, "Multinomial logistic regression algorithm", 1992), which differs from model to model by
  thousands. So one rate serves all.
- Weight decay pulls to the fleet's head and not to zero: what a device's few examples say nothing of stays the fleet's.
- The features are of the fleet's model, as the device received it, and not of what it made of it in local steps.
"""

from dataclasses import dataclass

import numpy as np

from edge_agent.runtimes.engine import Array, Vector


@dataclass(frozen=True, slots=True)
class Head:
    """A linear layer. weight: float32[classes, features]; bias: float32[classes]."""

    weight: Vector
    bias: Vector

    def scores(self, features: Vector) -> Vector:
        """float32[n, classes] of float32[n, features]."""
        return features @ self.weight.T + self.bias


@dataclass(frozen=True, slots=True)
class HeadRecipe:
    """steps: of `batch` examples. rate: 1 is the largest that cannot overshoot. decay: how strongly the fleet's head
    pulls, of 1 a step of rate 1 takes it all the way back."""

    steps: int = 200
    batch: int = 32
    rate: float = 0.5
    decay: float = 0.0
    seed: int = 0


def trained(head: Head, features: Vector, labels: Array, recipe: HeadRecipe) -> Head:
    """The head after the recipe's steps. features: float32[n, features]; labels: int64[n]. Pure: the same arguments
    give the same bits."""
    n, start = len(features), head
    rng = np.random.default_rng(recipe.seed)
    weight, bias = head.weight.astype(np.float32), head.bias.astype(np.float32)
    rate = np.float32(recipe.rate / _curvature(features))
    pull = np.float32(recipe.rate * recipe.decay)
    order, size = np.zeros(0, np.int64), min(recipe.batch, n)
    for _ in range(recipe.steps):
        if len(order) < size:
            order = rng.permutation(n)
        rows, order = order[:size], order[size:]
        x = features[rows]
        delta = probabilities(x @ weight.T + bias)
        delta[np.arange(size), labels[rows]] -= np.float32(1.0)
        delta *= np.float32(1.0 / size)
        weight = weight - rate * (delta.T @ x) - pull * (weight - start.weight)
        bias = bias - rate * delta.sum(axis=0) - pull * (bias - start.bias)
    return Head(weight, bias)


def probabilities(scores: Array) -> Array:
    """Softmax over the last axis, of the scores' type."""
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


def _curvature(features: Vector) -> float:
    """At most so much bends the mean loss: half the mean square of the features and the bias's 1."""
    return 0.5 * (float(np.mean(np.einsum("ij,ij->i", features, features, dtype=np.float64))) + 1.0)
