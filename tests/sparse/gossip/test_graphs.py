"""Graphs are connected and as their names say; weights are symmetric and doubly stochastic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse.gossip import Graph, metropolis_hastings, parse_edges, parse_topology, spanning_tree, spectral_gap
from sparse.gossip.graph import BY_FORMULA, chain, distances, fully_connected, graph_of, ring, star, torus

NAMES = [*BY_FORMULA, "erdos-renyi:0.4"]


def named(text: str, n: int) -> Graph:
    return parse_topology(text, n, np.random.default_rng(1))


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.sampled_from(NAMES), st.sampled_from([1, 2, 3, 4, 6, 8, 9, 12, 16, 20]))
def test_weights_of_every_topology_are_symmetric_and_doubly_stochastic(text: str, n: int) -> None:
    weights = metropolis_hastings(named(text, n))
    np.testing.assert_array_equal(weights, weights.T)
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-12)
    assert (weights >= -1e-15).all()
    assert 0 < spectral_gap(weights) <= 1


@pytest.mark.parametrize(("text", "degree"), [("ring", 2), ("torus", 4), ("full", 15), ("exponential", 7)])
def test_every_device_of_a_regular_topology_has_the_same_neighbours_in_number(text: str, degree: int) -> None:
    assert {len(near) for near in named(text, 16).neighbours} == {degree}


def test_a_ring_mixes_by_thirds_a_torus_by_fifths_and_a_full_graph_at_once() -> None:
    assert metropolis_hastings(ring(9))[0, 1] == pytest.approx(1 / 3)
    assert metropolis_hastings(torus(16))[0, 1] == pytest.approx(1 / 5)
    assert spectral_gap(metropolis_hastings(fully_connected(7))) == pytest.approx(1)


def test_the_spectral_gap_of_a_ring_is_that_of_the_formula() -> None:
    assert spectral_gap(metropolis_hastings(ring(16))) == pytest.approx(2 / 3 * (1 - np.cos(2 * np.pi / 16)))


def test_a_graph_in_two_parts_is_refused_with_who_is_cut_off() -> None:
    with pytest.raises(ValueError, match="no path leads from device 0 to 2 others, first 2"):
        graph_of(4, [(0, 1), (2, 3)])


def test_a_link_that_goes_one_way_is_refused() -> None:
    with pytest.raises(ValueError, match="one way"):
        Graph(((1,), ()))


def test_a_torus_of_a_prime_number_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="13 is prime; use ring"):
        torus(13)


def test_a_random_graph_that_can_hardly_be_connected_is_refused_with_the_least_probability() -> None:
    with pytest.raises(ValueError, match=r"use at least 0\.18"):
        named("erdos-renyi:0.001", 15)


def test_a_random_graph_is_the_same_for_the_same_seed() -> None:
    assert named("erdos-renyi:0.3", 12) == named("erdos-renyi:0.3", 12)


@pytest.mark.parametrize("text", ["mesh", "ring:3", "erdos-renyi:often"])
def test_an_unknown_topology_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="topology: "):
        named(text, 8)


def test_a_file_of_links_names_devices_and_forgets_those_who_left() -> None:
    text = "# our hall\na b\nb c  # over the stairs\nc gone\n\na b\n"
    assert parse_edges(text, ["a", "b", "c"]) == chain(3)


def test_a_line_of_a_file_that_is_no_link_is_refused_by_its_number() -> None:
    with pytest.raises(ValueError, match="line 2 has 3 words"):
        parse_edges("a b\na b c\n", ["a", "b"])


@pytest.mark.parametrize("text", NAMES)
def test_a_spanning_tree_holds_every_device_by_the_shortest_paths_from_its_root(text: str) -> None:
    graph = named(text, 16)
    tree = spanning_tree(graph)
    assert tree.is_tree
    assert set(tree.edges) <= set(graph.edges)
    assert distances(tree, 0) == distances(graph, 0)


def test_a_star_has_a_device_in_the_middle() -> None:
    assert [len(near) for near in star(5).neighbours] == [4, 1, 1, 1, 1]
