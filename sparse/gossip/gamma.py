"""gamma of CHOCO for a codec on a graph, by trial: how well gossip alone averages Gaussian vectors.

The authors' recipe (epfml/ChocoSGD, tune_consensus_stepsize.py): of 20 values from 1e-3 to 1, evenly spaced in their
logarithms, the one that leaves the least error. We depart in the vectors' length, at most `MAX_VALUES`, for what a
codec keeps of Gaussian noise does not depend on it; and give up on a value as soon as it diverges.
"""

from dataclasses import dataclass

import numpy as np

from sparse.gossip.choco import Compressor, apply, begin, move, say
from sparse.gossip.weights import Weights

CANDIDATES = tuple(float(g) for g in np.logspace(-3, 0, 20))
ROUNDS = 1000
MAX_VALUES = 2000
# An error so many times that of the beginning does not come back.
DIVERGED = 1e3


@dataclass(frozen=True, slots=True)
class Trial:
    """error: the consensus distance left, as a share of what there was at first; infinite where it diverged."""

    gamma: float
    error: float


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best of the trials, and all of them in the order of gamma."""

    gamma: float
    trials: tuple[Trial, ...]


def tune(
    weights: Weights,
    compressor: Compressor,
    d: int,
    rng: np.random.Generator,
    rounds: int = ROUNDS,
    candidates: tuple[float, ...] = CANDIDATES,
) -> Tuned:
    """Tries every candidate on the same vectors, float32[n, d]. The compressor's shapes must make up d values.

    Raises ValueError where no candidate brings the devices closer together, as for a codec that does not contract.
    """
    vectors = rng.standard_normal((len(weights), d), dtype=np.float32)
    trials = tuple(Trial(gamma, _error(weights, compressor, vectors, gamma, rounds)) for gamma in candidates)
    best = min(trials, key=lambda trial: trial.error)
    if not best.error < 1:
        raise ValueError(
            f"gamma: {compressor.spec} brings no devices together on this graph at any of {len(candidates)} values; "
            "use a codec that keeps more, for example topk:0.01/float16 or all/sign"
        )
    return Tuned(best.gamma, trials)


def _error(weights: Weights, compressor: Compressor, vectors: np.ndarray, gamma: float, rounds: int) -> float:
    n = len(weights)
    rows = [{j: float(w) for j, w in enumerate(row) if w > 0 and j != i} for i, row in enumerate(weights)]
    models = list(vectors)
    states = [begin(np.zeros_like(model)) for model in models]
    at_first = spread = _spread(models)
    for number in range(rounds):
        said = [say(states[i], models[i], compressor, number * n + i)[1] for i in range(n)]
        for i in range(n):
            heard = {j: said[j] for j in rows[i]}
            states[i] = apply(states[i], said[i], float(weights[i, i]), heard, rows[i])
            models[i] = move(states[i], models[i], gamma)
        spread = _spread(models)
        if not spread < DIVERGED * at_first:
            return float("inf")
    return float(spread / at_first)


def _spread(models: list[np.ndarray]) -> float:
    together = np.stack(models).astype(np.float64)
    return float(np.square(together - together.mean(axis=0)).sum())
