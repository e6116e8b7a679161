"""How much of the fleet's head and how much of the device's own goes into an answer: decided anew for each example,
without labels.

FedTHE (Jiang & Lin, ICLR 2023, and the authors' code): z = e z_fleet + (1 - e) z_personal, and Adam takes a few steps
of e, from one half, down

    s H(softmax z) + (1 - s) (e |h' - m_fleet| + (1 - e) |h' - m_own|),

H the entropy, s the cosine of both heads' probabilities, h' = beta h + (1 - beta) h_history, the history a moving
average of the features of what was asked so far, and m the mean features of the fleet's and of this device's
training examples. Where both heads agree the surer mix wins, where they do not what the features are nearer to.
We depart in m_fleet: theirs is the mean of what all devices say of theirs; nothing is said here, and `fleet_mean`
estimates it. Their FedTHE+, which also tunes the network on sixteen distortions of every example, is left out: it is
training for each answer.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edge_agent.personal.head import Head, probabilities
from edge_agent.runtimes.engine import Array, Vector

Doubles = npt.NDArray[np.float64]

# Adam's constants as torch has them, which the authors leave as they are.
_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


@dataclass(frozen=True, slots=True)
class MixRule:
    """The authors' constants. alpha: how much the newest example counts in the history. beta: and in h'."""

    steps: int = 20
    rate: float = 0.1
    alpha: float = 0.1
    beta: float = 0.1


@dataclass(frozen=True, slots=True)
class Means:
    """float32[features] each: mean features of this device's training examples, and of the fleet's."""

    own: Vector
    fleet: Vector


@dataclass(frozen=True, slots=True)
class Mixed:
    """scores: float64[n, classes]. share: float64[n], of the fleet's head, in 0..1. history: float32[features], for the
    examples after these."""

    scores: Doubles
    share: Doubles
    history: Vector


def mixed(
    fleet: Array, personal: Array, features: Vector, means: Means, rule: MixRule, history: Vector | None = None
) -> Mixed:
    """Both heads' scores, [n, classes], mixed in the order in which they were asked for. features: float32[n,
    features]. history: of what was asked before, None at the beginning."""
    fleet, personal = fleet.astype(np.float64), personal.astype(np.float64)
    smoothed, history = _smoothed(features, rule, history)
    p, q = probabilities(fleet), probabilities(personal)
    norms = np.linalg.norm(p, axis=1) * np.linalg.norm(q, axis=1)
    sim = np.einsum("ij,ij->i", p, q) / norms
    # How much further off the fleet's mean is than this device's.
    further = np.linalg.norm(smoothed - means.fleet, axis=1) - np.linalg.norm(smoothed - means.own, axis=1)
    share = _descended(fleet, personal, sim, further, rule)[:, None]
    return Mixed(share * fleet + (1.0 - share) * personal, share[:, 0], history)


def _descended(fleet: Doubles, personal: Doubles, sim: Doubles, further: Doubles, rule: MixRule) -> Doubles:
    """float64[n] in 0..1. The authors' two weights begin equal and get opposite gradients, so that Adam moves them by
    the same in opposite directions: softmax(1 + d, 1 - d) = sigmoid(2 d), and d alone is kept."""
    d, first, second = np.zeros((3, len(sim)))
    for step in range(1, rule.steps + 1):
        e = _sigmoid(2.0 * d)
        z = e[:, None] * fleet + (1.0 - e)[:, None] * personal
        by_share = sim * _entropy_slope(z, fleet - personal) + (1.0 - sim) * further
        gradient = by_share * e * (1.0 - e)
        first = _BETA1 * first + (1.0 - _BETA1) * gradient
        second = _BETA2 * second + (1.0 - _BETA2) * gradient**2
        root = np.sqrt(second / (1.0 - _BETA2**step)) + _EPSILON
        d = d - rule.rate * first / (1.0 - _BETA1**step) / root
    return _sigmoid(2.0 * d)


def _entropy_slope(z: Doubles, direction: Doubles) -> Doubles:
    """float64[n]: how the entropy of softmax(z) changes along a direction of the scores."""
    p = probabilities(z)
    log_p = np.log(np.maximum(p, 1e-300))
    entropy = -(p * log_p).sum(axis=1, keepdims=True)
    return np.asarray((-p * (log_p + entropy) * direction).sum(axis=1))


def _smoothed(features: Vector, rule: MixRule, history: Vector | None) -> tuple[Vector, Vector]:
    """float32[n, features], h' of each example, and the history after the last."""
    found = np.empty_like(features)
    past = features[0] if history is None and len(features) else history
    assert past is not None, "no examples and no history"
    for i, h in enumerate(features):
        past = np.float32(rule.alpha) * h + np.float32(1.0 - rule.alpha) * past
        found[i] = np.float32(rule.beta) * h + np.float32(1.0 - rule.beta) * past
    return found, past


def fleet_mean(features: Vector, labels: Array, head: Head) -> Vector:
    """float32[features]: an estimate, from this device's examples alone, of the mean feature of a fleet that has as
    much of each class.

    Of classes that are here their mean is taken. The others' is guessed by the fleet's head: the means of trained
    features lie as the rows of the weight do, but for a shift and a factor (neural collapse: Papyan, Han, Donoho, PNAS
    2020), which are fitted to the classes that are here. Of one class no factor can be fitted, and the estimate is its
    mean: then the features decide nothing, and the mix is by entropy.
    """
    counts = np.bincount(labels, minlength=len(head.weight))
    sums = np.zeros(head.weight.shape, np.float64)
    np.add.at(sums, labels, features)
    here = counts > 0
    means = sums[here] / counts[here][:, None]
    rows = head.weight.astype(np.float64)
    centre, middle = means.mean(axis=0), rows[here].mean(axis=0)
    spread = rows[here] - middle
    square = float((spread**2).sum())
    factor = max(0.0, float((spread * (means - centre)).sum()) / square) if square > 0 else 0.0
    away = centre + factor * (rows[~here] - middle)
    return np.asarray(np.concatenate([means, away]).mean(axis=0), np.float32)


def _sigmoid(x: Doubles) -> Doubles:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))
