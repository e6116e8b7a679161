"""Exact gossip and quasi-global momentum by their identities."""

import numpy as np
import pytest

from sparse.gossip import metropolis_hastings
from sparse.gossip.exact import mix
from sparse.gossip.graph import fully_connected, ring
from sparse.gossip.quasi_global import QuasiGlobal, refresh, step
from tests.sparse.gossip.network import Problems, Vector, row

RATE = 0.1


def alone(rule: QuasiGlobal, rounds: int) -> list[Vector]:
    """The way of one device without neighbours."""
    problems, x, momentum = Problems.drawn(1, 10), np.zeros(10, np.float32), np.zeros(10, np.float32)
    found = [x]
    for _ in range(rounds):
        y = step(rule, momentum, x, problems.gradient(0, x), RATE)
        momentum = refresh(rule, momentum, x, y, RATE)
        x = y
        found.append(x)
    return found


def heavy_ball(coefficient: float, rounds: int) -> list[Vector]:
    problems, x, velocity = Problems.drawn(1, 10), np.zeros(10, np.float32), np.zeros(10, np.float32)
    found = [x]
    for _ in range(rounds):
        velocity = (coefficient * velocity + problems.gradient(0, x)).astype(np.float32)
        x = (x - RATE * velocity).astype(np.float32)
        found.append(x)
    return found


def test_quasi_global_momentum_of_one_device_with_mu_0_is_heavy_ball() -> None:
    np.testing.assert_allclose(alone(QuasiGlobal(0.9, 0.0), 50), heavy_ball(0.9, 50), atol=2e-5)


def test_quasi_global_momentum_of_one_device_with_beta_0_is_sgd() -> None:
    np.testing.assert_array_equal(alone(QuasiGlobal(0.0, 0.9), 50), heavy_ball(0.0, 50))


@pytest.mark.parametrize(("beta", "mu"), [(0.9, 0.9), (0.5, 0.8)])
def test_quasi_global_momentum_of_one_device_has_the_coefficient_mu_plus_1_minus_mu_times_beta(
    beta: float, mu: float
) -> None:
    """x - x' = eta m, so mh' = (mu + (1 - mu) beta) mh + (1 - mu) g: quasi-hyperbolic momentum."""
    rule, problems = QuasiGlobal(beta, mu), Problems.drawn(1, 10)
    expected = np.zeros(10)
    momentum, x = np.zeros(10, np.float32), np.zeros(10, np.float32)
    for _ in range(50):
        gradient = problems.gradient(0, x)
        y = step(rule, momentum, x, gradient, RATE)
        expected = (mu + (1 - mu) * beta) * expected + (1 - mu) * gradient
        momentum, x = refresh(rule, momentum, x, y, RATE), y
        np.testing.assert_allclose(momentum, expected, atol=2e-5)


def test_nesterov_steps_from_the_gradient_and_the_momentum_ahead() -> None:
    x, momentum, gradient = (np.array([value], np.float32) for value in (1.0, 2.0, 3.0))
    assert step(QuasiGlobal(0.5, 0.9, nesterov=True), momentum, x, gradient, 0.1) == pytest.approx(1 - 0.1 * 5)
    assert step(QuasiGlobal(0.5, 0.9), momentum, x, gradient, 0.1) == pytest.approx(1 - 0.1 * 4)


def test_quasi_global_momentum_is_the_same_everywhere_on_a_full_graph_from_a_common_start() -> None:
    n, rule = 5, QuasiGlobal()
    weights, problems = metropolis_hastings(fully_connected(n)), Problems.drawn(n, 10)
    models = [np.zeros(10, np.float32) for _ in range(n)]
    moments = [np.zeros(10, np.float32) for _ in range(n)]
    for _ in range(20):
        ys = [step(rule, moments[i], models[i], problems.gradient(i, models[i]), RATE) for i in range(n)]
        after = [mix(ys[i], weights[i, i], {j: ys[j] for j in row(weights, i)}, row(weights, i)) for i in range(n)]
        moments = [refresh(rule, moments[i], models[i], after[i], RATE) for i in range(n)]
        models = after
    # Each sums its own first, so the last bits differ.
    np.testing.assert_allclose(moments, np.broadcast_to(moments[0], (n, 10)), atol=1e-4)
    assert any(np.abs(problems.gradient(0, models[0]) - problems.gradient(1, models[1])) > 0.1)


def test_quasi_global_momentum_measures_the_mean_of_several_steps() -> None:
    rule, x = QuasiGlobal(0.0, 0.0), np.ones(3, np.float32)
    np.testing.assert_allclose(refresh(rule, np.zeros(3, np.float32), x, x - 0.4, 0.1, steps=4), np.ones(3), rtol=1e-6)


def test_exact_gossip_is_a_product_with_the_weights() -> None:
    weights = metropolis_hastings(ring(6))
    ys = np.random.default_rng(0).standard_normal((6, 30), dtype=np.float32)
    mixed = [mix(ys[i], weights[i, i], {j: ys[j] for j in row(weights, i)}, row(weights, i)) for i in range(6)]
    np.testing.assert_allclose(mixed, weights @ ys, atol=1e-6)


def test_the_weight_of_a_neighbour_that_was_not_heard_is_ones_own() -> None:
    mixed = mix(np.array([1], np.float32), 0.5, {1: np.array([3], np.float32)}, {1: 0.25, 2: 0.25})
    assert mixed == pytest.approx(0.75 * 1 + 0.25 * 3)
