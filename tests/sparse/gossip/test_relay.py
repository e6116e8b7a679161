"""RelaySum by its delay, and by what loss, repetition and overtaking leave of it."""

import numpy as np
import pytest

from sparse.gossip import Graph, relay
from sparse.gossip.graph import binary_tree, chain, distances, star
from tests.sparse.gossip.network import Vector

N, D, ROUNDS = 9, 12, 12


def ys(seed: int) -> Vector:
    return np.random.default_rng(seed).standard_normal((ROUNDS, N, D), dtype=np.float32)


def exchanged(states: list[relay.Relay], tree: Graph, y: Vector, number: int) -> list[relay.Relay]:
    """All messages are made from what was held before any of them arrives."""
    sent = [relay.messages(state, y[i], number) for i, state in enumerate(states)]
    for i in range(len(tree)):
        for j in tree.neighbours[i]:
            states[i] = relay.receive(states[i], j, sent[j][i])
    return states


def begun(tree: Graph) -> list[relay.Relay]:
    return [relay.begin(near) for near in tree.neighbours]


@pytest.mark.parametrize("tree", [chain(N), star(N), binary_tree(N)], ids=["chain", "star", "binary tree"])
def test_relaysum_x_of_i_is_the_mean_over_j_of_y_of_j_tau_ij_rounds_ago(tree: Graph) -> None:
    said, start, states = ys(1), np.full(D, 0.5, np.float32), begun(tree)
    for t in range(ROUNDS):
        states = exchanged(states, tree, said[t], t)
        for i in range(N):
            delays = [max(distance - 1, 0) for distance in distances(tree, i)]
            expected = [said[t - delay, j] if t >= delay else start for j, delay in enumerate(delays)]
            found = relay.average(states[i], said[t, i], N, start)
            np.testing.assert_allclose(found, np.mean(expected, axis=0), atol=1e-6)


def test_counts_come_to_all_others_after_as_many_rounds_as_the_tree_is_long() -> None:
    tree, said, states = chain(N), ys(2), begun(chain(N))
    for t in range(N - 1):
        states = exchanged(states, tree, said[t], t)
    assert [sum(m.count for m in state.heard.values()) for state in states] == [N - 1] * N


def test_equal_models_stay_what_they_are_from_the_first_round_on() -> None:
    tree, model = binary_tree(N), np.arange(D, dtype=np.float32)
    states = exchanged(begun(tree), tree, np.broadcast_to(model, (N, D)), 0)
    for state in states:
        np.testing.assert_array_equal(relay.average(state, model, N, model), model)


def test_a_message_twice_or_overtaken_changes_nothing() -> None:
    older = relay.Relayed(np.zeros(D, np.float32), 1, 3)
    newer = relay.Relayed(np.ones(D, np.float32), 2, 4)
    state = relay.receive(relay.begin((1, 2)), 1, newer)
    assert relay.receive(state, 1, newer) is state
    assert relay.receive(state, 1, older) is state


def test_a_message_of_no_neighbour_changes_nothing() -> None:
    state = relay.begin((1, 2))
    assert relay.receive(state, 5, relay.Relayed(np.ones(D, np.float32), 1, 0)) is state


def test_what_was_lost_is_made_good_by_the_next_message() -> None:
    """With every message of a round lost, or none: two rounds of the tree's length later nobody can tell."""
    tree, model = chain(N), np.broadcast_to(np.arange(N, dtype=np.float32)[:, None], (N, D))
    states = begun(tree)
    rng = np.random.default_rng(4)
    for t in range(40):
        sent = [relay.messages(state, model[i], t) for i, state in enumerate(states)]
        for i in range(N):
            for j in tree.neighbours[i]:
                if t >= 20 or rng.random() > 0.3:
                    states[i] = relay.receive(states[i], j, sent[j][i])
    for i, state in enumerate(states):
        np.testing.assert_allclose(relay.average(state, model[i], N, model[0]), np.full(D, (N - 1) / 2), rtol=1e-6)
