"""Devices without a hub go on in lock-step: what is lost, doubled, overtaken or forgotten changes no bit."""

from dataclasses import replace

import numpy as np
import pytest

from edge_agent.gossip import node as table
from protocol.gossip import Effort, Membership
from sparse.gossip import metropolis_hastings
from sparse.gossip.consensus import distance
from sparse.gossip.graph import chain, graph_of, ring, star
from tests.agent.gossip.simulated import Network, name
from tests.sparse.gossip.network import LAYOUT

ROUNDS = 60


def begun(**settings: object) -> Network:
    network = Network(ring(6), **settings)  # type: ignore[arg-type]
    network.join(network.memberships(1, network.graph))
    return network


@pytest.fixture(scope="module")
def undisturbed() -> Network:
    network = begun()
    network.run(ROUNDS)
    return network


@pytest.mark.parametrize(
    "faults",
    [{"loss": 0.01, "twice": 0.01}, {"loss": 0.2, "twice": 0.2}, {"crash": 0.05, "loss": 0.05}],
    ids=["1 % lost and 1 % twice", "a fifth lost and a fifth twice", "crashes"],
)
def test_lost_and_doubled_messages_and_crashes_leave_the_very_bits_of_a_run_without(
    undisturbed: Network, faults: dict[str, float]
) -> None:
    network = begun(**faults)
    network.run(ROUNDS)
    assert network.lost > 0
    assert (network.crashes > 0) == ("crash" in faults)
    for number in (1, ROUNDS // 2, ROUNDS):
        np.testing.assert_array_equal(network.models(1, number), undisturbed.models(1, number))


def test_the_network_is_choco_as_the_rule_has_it(undisturbed: Network) -> None:
    """Identity compression and gamma = 1 equal W (x - eta g), through every message."""
    network = begun(codec="all/float32", gamma=1.0)
    network.run(20)
    weights, exact = metropolis_hastings(ring(6)), np.zeros((6, network.d))
    for _ in range(20):
        exact = weights @ np.stack([network.trained(name(i), x.astype(np.float32), 1) for i, x in enumerate(exact)])
    np.testing.assert_allclose(network.models(1, 20), exact, atol=1e-5)


def test_an_exchange_leaves_the_mean_of_the_network_where_it_was() -> None:
    """1 % lost and 1 % doubled: with steps of nothing, 60 exchanges move the mean by what float32 rounds."""
    network = begun(loss=0.01, twice=0.01)
    network.run(10)
    before = network.models(1, 10).mean(axis=0, dtype=np.float64)
    network.effort = Effort(1, 64)
    for device in network.members:
        # From number 65 on nobody trains for a while.
        network.give(device, table.Adjusted(Effort(1, 64)))
    network.run(64)
    spread = distance(list(network.models(1, 10)))
    drift = np.abs(network.models(1, 64).mean(axis=0, dtype=np.float64) - before).max()
    assert spread > 0.01
    assert drift < 64 * 2**-24 * float(np.abs(network.models(1, 10)).max())
    assert distance(list(network.models(1, 64))) < 0.2 * spread


def test_devices_that_join_and_leave_after_an_exchange_begin_again_from_the_models_they_have() -> None:
    network = begun()
    network.run(10)
    mean = network.models(1, 10).mean(axis=0, dtype=np.float64)
    # One leaves after the twelfth exchange; the others are a chain.
    network.members.remove(name(5))
    network.join(network.memberships(2, chain(5), after=12))
    network.run(12)
    left = network.models(1, 12)
    network.run(1, epoch=2)
    assert (network.nodes[name(0)].membership or pytest.fail("none")).epoch == 2
    bases = np.stack([network.completed[d, 2, 1].before for d in network.members])
    np.testing.assert_array_equal(bases, left)
    assert np.abs(mean).max() > 0


def test_a_newcomer_begins_at_the_mean_of_its_neighbours() -> None:
    network = begun()
    network.run(10)
    old = network.models(1, 10)
    network.members.append(name(6))
    network.nodes[name(6)] = table.idle(network.start)
    graph = graph_of(7, [*ring(6).edges, (0, 6), (3, 6)])
    network.join(network.memberships(2, graph, after=10, new=(name(6),)))
    network.run(1, epoch=2)
    np.testing.assert_allclose(network.completed[name(6), 2, 1].before, (old[0] + old[3]) / 2, atol=1e-6)


def test_after_a_crash_for_good_the_others_begin_again_at_once_and_agree() -> None:
    network = begun(loss=0.02)
    network.run(10)
    dead = network.members.pop(2)
    del network.nodes[dead]
    with pytest.raises(AssertionError, match=f"waiting', 11, .'{dead}'"):
        network.run(20)
    assert dead in table.waits_for(network.nodes[name(1)])
    network.join(network.memberships(2, ring(5)))
    network.run(80, epoch=2)
    # Devices with different data stay apart by what a step pulls, no more.
    assert distance(list(network.models(2, 80))) < distance(list(network.models(1, 10)[[0, 1, 2, 3, 4]])) + 0.5
    for device in network.members:
        choco, near = network.nodes[device].choco, network.nodes[device].membership
        assert choco is not None
        assert near is not None
        assert dead not in near.weights


def test_a_membership_of_an_epoch_that_is_over_or_known_changes_nothing() -> None:
    network = begun()
    network.run(5)
    before = dict(network.nodes)
    network.join(network.memberships(1, star(6)))
    assert network.nodes == before


def test_who_cannot_complete_the_last_exchange_of_an_epoch_can_be_told_to_begin_at_once() -> None:
    network = begun()
    network.run(5)
    later, now = network.memberships(2, ring(6), after=9), network.memberships(2, ring(6), after=0)
    network.join(later)
    assert {node.membership.epoch for node in network.nodes.values() if node.membership} == {1}
    network.join(now)
    assert {node.membership.epoch for node in network.nodes.values() if node.membership} == {2}


def test_a_payload_of_another_layout_is_refused_and_asked_for_again() -> None:
    network = begun()
    network.run(3)
    node = network.nodes[name(0)]
    garbage = table.Heard(name(1), 1, node.number, bytes(40))
    after, decisions = table.step(node, garbage, network.shape(name(0)))
    assert after is node
    assert [type(d) for d in decisions] == [table.Refused]


@pytest.mark.parametrize("number", [-1, 2])
def test_a_payload_that_is_not_of_this_number_or_the_next_changes_nothing(number: int) -> None:
    network = begun()
    network.run(3)
    node = network.nodes[name(0)]
    event = table.Heard(name(1), 1, node.number + number, b"")
    assert table.step(node, event, network.shape(name(0))) == (node, [])


def test_two_payloads_are_kept_and_older_ones_are_not_said_again() -> None:
    network = begun()
    network.run(8)
    node = network.nodes[name(0)]
    assert len(node.payloads) == 2
    assert table.step(node, table.Wanted(name(1), 1, 3), network.shape(name(0)))[1] == []
    newest = max(node.payloads)
    assert table.step(node, table.Wanted(name(1), *newest), network.shape(name(0)))[1] == [
        table.Publish(*newest, node.payloads[newest])
    ]


def test_a_device_alone_trains_by_itself() -> None:
    shape = table.Shape("alone", LAYOUT, [(4,)], np.zeros(4, np.float32))
    node, decisions = table.step(
        table.idle(shape.start), table.Joined(Membership("r", 1, (), "all/float32", 1.0, 0, True)), shape
    )
    assert isinstance(decisions[-1], table.Train)
    node, decisions = table.step(node, table.Trained(1, 1, np.ones(4, np.float32)), shape)
    assert [type(d) for d in decisions] == [table.Publish, table.Completed, table.Train]
    np.testing.assert_array_equal(node.x, np.ones(4, np.float32))


def test_more_gossip_rounds_are_exchanges_without_training_in_between() -> None:
    network = begun(effort=Effort(2, 3))
    network.run(6)
    moved = [
        not np.array_equal(network.completed[name(0), 1, t].before, network.completed[name(0), 1, t].after)
        for t in range(1, 7)
    ]
    assert moved[0]
    node = network.nodes[name(0)]
    assert [table.train_of(replace(node, number=t)).steps for t in range(1, 7)] == [2, 0, 0, 2, 0, 0]
