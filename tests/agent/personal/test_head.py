"""A personal head: from the fleet's, by its data, the same bits every time."""

from dataclasses import replace

import numpy as np
import pytest

from edge_agent.personal.head import Head, HeadRecipe, probabilities, trained

RNG = np.random.default_rng(3)
FLEET = Head(RNG.normal(size=(3, 5)).astype(np.float32), RNG.normal(size=3).astype(np.float32))
X = RNG.normal(size=(60, 5)).astype(np.float32)
Y = np.argmax(X[:, :3], axis=1)


def loss(head: Head, x: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(probabilities(head.scores(x))[np.arange(len(y)), y]).mean())


def test_zero_steps_are_the_fleets_head_to_the_bit() -> None:
    found = trained(FLEET, X, Y, HeadRecipe(steps=0))
    np.testing.assert_array_equal(found.weight, FLEET.weight)
    np.testing.assert_array_equal(found.bias, FLEET.bias)


def test_the_same_data_and_recipe_give_the_same_bits_and_leave_the_fleets_head_alone() -> None:
    kept = FLEET.weight.copy()
    one, other = (trained(FLEET, X, Y, HeadRecipe()) for _ in range(2))
    np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(one.bias, other.bias)
    np.testing.assert_array_equal(FLEET.weight, kept)
    assert one.weight.dtype == one.bias.dtype == np.float32


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_rate_of_one_does_not_overshoot_whatever_the_features_scale(scale: float) -> None:
    x, start = (scale * X).astype(np.float32), Head(np.zeros((3, 5), np.float32), np.zeros(3, np.float32))
    before = loss(start, x, Y)
    for steps in (1, 3, 10, 30):
        after = loss(trained(start, x, Y, HeadRecipe(steps=steps, batch=60, rate=1.0)), x, Y)
        assert after < before
        before = after


def test_one_step_on_everything_is_a_step_down_the_gradient_of_the_mean_loss() -> None:
    recipe = HeadRecipe(steps=1, batch=60, rate=0.5)
    found = trained(FLEET, X, Y, recipe)
    delta = (probabilities(X @ FLEET.weight.T + FLEET.bias) - np.eye(3)[Y]) / 60
    curvature = 0.5 * (np.mean((X**2).sum(axis=1)) + 1.0)
    np.testing.assert_allclose(found.weight, FLEET.weight - 0.5 / curvature * (delta.T @ X), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.bias, FLEET.bias - 0.5 / curvature * delta.sum(axis=0), rtol=1e-4, atol=1e-6)


def test_it_learns_what_labels_are_here_and_decay_holds_it_near_the_fleets() -> None:
    y = np.full(60, 2)
    free = trained(FLEET, X, y, HeadRecipe())
    held = trained(FLEET, X, y, HeadRecipe(decay=0.5))
    assert np.mean(free.scores(X).argmax(axis=1) == 2) > 0.95
    apart = [float(np.linalg.norm(head.weight - FLEET.weight)) for head in (held, free)]
    assert 0 < apart[0] < apart[1] / 2


def test_fewer_examples_than_a_batch_are_a_batch() -> None:
    whole = trained(FLEET, X[:5], Y[:5], HeadRecipe(batch=5))
    np.testing.assert_allclose(trained(FLEET, X[:5], Y[:5], HeadRecipe(batch=32)).weight, whole.weight)
    other = trained(FLEET, X, Y, replace(HeadRecipe(), seed=1))
    assert (other.weight != trained(FLEET, X, Y, HeadRecipe()).weight).any()
