"""Mixing weights of a graph: symmetric and doubly stochastic, so that a mean stays what it was."""

import numpy as np
import numpy.typing as npt

from sparse.gossip.graph import Graph

Weights = npt.NDArray[np.float64]


def metropolis_hastings(graph: Graph) -> Weights:
    """w_ij = 1 / (1 + max(degree_i, degree_j)) for neighbours, and what is left for oneself: float64[n, n].

    Xiao, Boyd and Kim 2007, Distributed Average Consensus with Least-Mean-Square Deviation, section 5. A device needs
    to know no more than its neighbours' degrees. On a ring 1/3, on a torus 1/5, fully connected 1/n.
    """
    weights = np.zeros((len(graph), len(graph)))
    for i, j in graph.edges:
        weights[i, j] = weights[j, i] = 1 / (1 + max(len(graph.neighbours[i]), len(graph.neighbours[j])))
    np.fill_diagonal(weights, 1 - weights.sum(axis=1))
    return weights


def spectral_gap(weights: Weights) -> float:
    """1 - the second largest of the eigenvalues' magnitudes: 1 where one exchange averages, 0 where none ever does."""
    if len(weights) == 1:
        return 1.0
    return float(1 - np.sort(np.abs(np.linalg.eigvalsh(weights)))[-2])
