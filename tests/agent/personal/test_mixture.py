"""The mix of both heads at test time: its laws, its gradient, and that it is never told a label."""

import inspect

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_agent.personal.head import Head, HeadRecipe, trained
from edge_agent.personal.mixture import Means, MixRule, _entropy_slope, fleet_mean, mixed

RULE = MixRule()
RNG = np.random.default_rng(7)
_SCORES = st.floats(-50, 50, width=32)


def means(own: float, fleet: float, features: int = 2) -> Means:
    return Means(np.full(features, own, np.float32), np.full(features, fleet, np.float32))


@given(arrays(np.float32, (6, 3), elements=_SCORES), arrays(np.float32, (6, 3), elements=_SCORES))
def test_a_share_is_between_none_and_all_whatever_the_scores(fleet: np.ndarray, personal: np.ndarray) -> None:
    found = mixed(fleet, personal, np.ones((6, 2), np.float32), means(0, 3), RULE)
    assert ((found.share >= 0) & (found.share <= 1)).all()
    low, high = np.minimum(fleet, personal), np.maximum(fleet, personal)
    assert ((found.scores >= low - 1e-4) & (found.scores <= high + 1e-4)).all()


@given(arrays(np.float32, (5, 3), elements=_SCORES))
def test_equal_heads_give_their_own_scores(scores: np.ndarray) -> None:
    found = mixed(scores, scores, np.ones((5, 2), np.float32), means(1, 2), RULE)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6, atol=1e-6)


def test_without_steps_each_head_has_half() -> None:
    fleet, personal = RNG.normal(size=(2, 4, 3))
    found = mixed(fleet, personal, np.ones((4, 2), np.float32), means(1, 2), MixRule(steps=0))
    np.testing.assert_array_equal(found.share, 0.5)
    np.testing.assert_allclose(found.scores, (fleet + personal) / 2)


def test_where_the_heads_disagree_the_one_whose_features_are_nearer_gets_the_weight() -> None:
    fleet, personal = np.array([[9.0, 0, 0]] * 4), np.array([[0, 9.0, 0]] * 4)
    at = np.full((4, 2), 0.1, np.float32)
    assert (mixed(fleet, personal, at, means(0, 5), RULE).share < 0.1).all()
    assert (mixed(fleet, personal, at, means(5, 0), RULE).share > 0.9).all()


def test_where_the_heads_agree_the_surer_one_gets_the_weight() -> None:
    sure, unsure = np.array([[6.0, 0, 0]] * 3), np.array([[0.5, 0, 0]] * 3)
    at = np.zeros((3, 2), np.float32)
    assert (mixed(sure, unsure, at, means(1, 1), RULE).share > 0.8).all()
    assert (mixed(unsure, sure, at, means(1, 1), RULE).share < 0.2).all()


def test_labels_are_no_argument_and_examples_in_parts_give_what_they_give_at_once() -> None:
    assert not {"labels", "targets", "y"} & set(inspect.signature(mixed).parameters)
    fleet, personal = RNG.normal(size=(2, 9, 3))
    features = RNG.normal(size=(9, 2)).astype(np.float32)
    once = mixed(fleet, personal, features, means(0, 1), RULE)
    history, parts = None, []
    for rows in (slice(0, 4), slice(4, 5), slice(5, 9)):
        part = mixed(fleet[rows], personal[rows], features[rows], means(0, 1), RULE, history)
        history = part.history
        parts.append(part.scores)
    np.testing.assert_allclose(np.concatenate(parts), once.scores)
    np.testing.assert_array_equal(history, once.history)


def test_the_slope_of_the_entropy_is_its_derivative() -> None:
    z, direction = RNG.normal(size=(2, 5, 4))

    def entropy(scores: np.ndarray) -> np.ndarray:
        p = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        return np.asarray(-(p * np.log(p)).sum(axis=1))

    step = 1e-6
    slope = (entropy(z + step * direction) - entropy(z - step * direction)) / (2 * step)
    np.testing.assert_allclose(_entropy_slope(z, direction), slope, rtol=1e-5, atol=1e-8)


def test_it_is_what_torch_finds_with_two_weights_and_adam_as_the_authors_have_it() -> None:
    torch = pytest.importorskip("torch")
    fleet, personal = RNG.normal(size=(2, 6, 3)) * 3
    features = RNG.normal(size=(6, 2)).astype(np.float32)
    own = means(0.2, 1.5)
    weights = torch.ones(6, 2, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weights], lr=RULE.rate)
    history, smoothed = features[0].astype(np.float64), []
    for h in features:
        history = RULE.alpha * h + (1 - RULE.alpha) * history
        smoothed.append(RULE.beta * h + (1 - RULE.beta) * history)
    g, p, h = (torch.tensor(one, dtype=torch.float64) for one in (fleet, personal, np.stack(smoothed)))
    far = [(h - torch.tensor(mean, dtype=torch.float64)).norm(dim=1) for mean in (own.fleet, own.own)]
    sim = torch.nn.functional.cosine_similarity(g.softmax(1), p.softmax(1))
    for _ in range(RULE.steps):
        e = weights.softmax(1)
        z = e[:, :1] * g + e[:, 1:] * p
        entropy = -(z.softmax(1) * z.log_softmax(1)).sum(1)
        adam.zero_grad()
        (sim * entropy + (1 - sim) * (e[:, 0] * far[0] + e[:, 1] * far[1])).sum().backward()
        adam.step()
    found = mixed(fleet, personal, features, own, RULE)
    np.testing.assert_allclose(found.share, weights.softmax(1)[:, 0].detach().numpy(), atol=1e-5)


def test_on_labels_that_are_shifted_here_the_personal_head_gets_the_weight_and_elsewhere_the_fleets() -> None:
    """Two clusters; this device saw one of them, and calls it otherwise than the fleet does."""
    rng = np.random.default_rng(0)
    centres = np.array([[4.0, 0.0], [0.0, 4.0]])
    fleet = Head(np.array([[3, 0], [0, 3], [0, 0]], np.float32), np.zeros(3, np.float32))
    here = (centres[0] + rng.normal(size=(50, 2))).astype(np.float32)
    labels = np.full(50, 2)
    head = trained(fleet, here, labels, HeadRecipe(steps=400))
    own = Means(here.mean(axis=0), np.array([2.0, 2.0], np.float32))
    asked = (centres[0] + rng.normal(size=(40, 2))).astype(np.float32)
    found = mixed(fleet.scores(asked), head.scores(asked), asked, own, RULE)
    assert found.share.mean() < 0.2
    assert np.mean(found.scores.argmax(axis=1) == 2) > 0.9
    other = (centres[1] + rng.normal(size=(40, 2))).astype(np.float32)
    away = mixed(fleet.scores(other), head.scores(other), other, own, RULE)
    assert away.share.mean() > found.share.mean()


def test_the_fleets_mean_is_that_of_the_classes_each_counted_once_where_all_are_here() -> None:
    features = np.array([[2, 0], [4, 0], [0, 6]], np.float32)
    head = Head(np.eye(2, dtype=np.float32), np.zeros(2, np.float32))
    np.testing.assert_allclose(fleet_mean(features, np.array([0, 0, 1]), head), [1.5, 3.0])


def test_a_class_that_is_not_here_is_guessed_by_the_head_where_features_lie_as_its_rows_do() -> None:
    rows = RNG.normal(size=(4, 3)).astype(np.float32)
    places = 2.5 * rows + np.array([1, 2, 3], np.float32)
    labels = np.array([0, 1, 2, 0, 1, 2])
    found = fleet_mean(places[labels], labels, Head(rows, np.zeros(4, np.float32)))
    np.testing.assert_allclose(found, places.mean(axis=0), rtol=1e-4)


def test_of_one_class_the_fleets_mean_is_this_devices() -> None:
    features = RNG.normal(size=(6, 3)).astype(np.float32)
    head = Head(RNG.normal(size=(4, 3)).astype(np.float32), np.zeros(4, np.float32))
    np.testing.assert_allclose(fleet_mean(features, np.full(6, 2), head), features.mean(axis=0), rtol=1e-5)
