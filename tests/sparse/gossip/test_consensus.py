"""Consensus: what devices can tell of it, and the control that keeps it."""

import numpy as np
import pytest

from sparse.gossip import metropolis_hastings
from sparse.gossip.consensus import Control, Effort, adjust, begin, distance, local_estimate
from sparse.gossip.graph import ring
from tests.sparse.gossip.network import row

WEIGHTS = metropolis_hastings(ring(8))


def estimates(models: np.ndarray) -> list[float]:
    near = [row(WEIGHTS, i) for i in range(8)]
    return [local_estimate(models[i], {j: models[j] for j in near[i]}, near[i]) for i in range(8)]


def test_local_estimates_are_all_0_if_and_only_if_the_models_agree() -> None:
    models = np.broadcast_to(np.arange(5.0), (8, 5)).copy()
    assert estimates(models) == [0.0] * 8
    assert distance(list(models)) == 0.0
    models[3, 2] += 1
    assert max(estimates(models)) > 0
    assert distance(list(models)) > 0


def test_a_local_estimate_is_how_far_an_exchange_would_move_the_model() -> None:
    models = np.random.default_rng(0).standard_normal((8, 5))
    np.testing.assert_allclose(estimates(models), np.linalg.norm(WEIGHTS @ models - models, axis=1))


def test_one_exact_exchange_contracts_the_distance_by_the_second_eigenvalue_at_least() -> None:
    models = np.random.default_rng(1).standard_normal((8, 50))
    second = np.sort(np.abs(np.linalg.eigvalsh(WEIGHTS)))[-2]
    assert distance(list(WEIGHTS @ models)) <= second * distance(list(models))


def test_control_raises_gossip_first_and_lowers_local_steps_once_that_is_at_its_most() -> None:
    control = Control(target=0.25, until=100, gossip_rounds=1, local_steps=4, most_gossip_rounds=4)
    effort, seen = begin(control), []
    for number in range(5):
        effort = adjust(control, effort, number, [1.0])
        seen.append((effort.gossip_rounds, effort.local_steps))
    assert seen == [(2, 4), (4, 4), (4, 2), (4, 1), (4, 1)]


def test_control_goes_back_the_same_way_once_the_distance_is_half_the_target() -> None:
    control = Control(target=0.25, until=100, gossip_rounds=1, local_steps=2, most_gossip_rounds=2)
    effort, seen = Effort(2, 1, largest=1.0), []
    for number, estimate in enumerate([0.2, 0.1, 0.1, 0.1]):
        effort = adjust(control, effort, number, [estimate])
        seen.append((effort.gossip_rounds, effort.local_steps))
    assert seen == [(2, 1), (2, 2), (1, 2), (1, 2)]


def test_control_ends_with_the_first_phase() -> None:
    control = Control(target=0.25, until=10)
    assert adjust(control, Effort(8, 1, 1.0), 10, [1.0]) == Effort(1, 1, 1.0)


def test_control_waits_where_nobody_reports() -> None:
    control = Control(target=0.25, until=10)
    assert adjust(control, Effort(4, 1, 1.0), 3, []) == Effort(4, 1, 1.0)


@pytest.mark.parametrize("odd", [float("inf"), float("nan")])
def test_control_does_not_hear_what_is_no_finite_number(odd: float) -> None:
    control, effort = Control(0.5, until=10), Effort(2, 1, 1.0)
    assert adjust(control, effort, 1, [0.9, odd, 0.7]) == adjust(control, effort, 1, [0.9, 0.7])
    assert adjust(control, effort, 1, [odd]) == effort


def test_control_keeps_the_distance_of_a_real_network_under_its_target() -> None:
    """Devices pulled to different places: the share of the largest estimate, with control and without."""
    pulls = np.random.default_rng(3).standard_normal((8, 30))

    def last(control: Control) -> float:
        models, effort, found = np.zeros((8, 30)), begin(control), [0.0]
        for number in range(60):
            models = models - 0.1 * (models - pulls)
            found = estimates(models)
            for _ in range(effort.gossip_rounds):
                models = WEIGHTS @ models
            effort = adjust(control, effort, number, found)
        return distance(list(models))

    free = last(Control(target=1.0, until=1))
    assert last(Control(target=0.25, until=100)) < 0.5 * free


def test_a_target_beyond_a_share_is_refused() -> None:
    with pytest.raises(ValueError, match="target: 2"):
        Control(target=2.0, until=10)
