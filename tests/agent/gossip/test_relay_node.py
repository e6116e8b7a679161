"""Devices that hand sums on: the bits of the rule where all comes in time, and the same place where much does not."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edge_agent.gossip import node as table
from edge_agent.gossip import relay_node
from edge_agent.gossip.store import NodeStore
from edge_agent.gossip.sums import pack
from protocol.gossip import Effort, Membership, Neighbour
from sparse.codecs import parse_codec
from sparse.gossip import Graph, choco, metropolis_hastings, relay
from sparse.gossip.choco import Compressor
from sparse.gossip.consensus import distance
from sparse.gossip.graph import binary_tree, chain, distances, star
from tests.agent.gossip.simulated import Network, name
from tests.sparse.gossip.network import LAYOUT, compressor, row
from tests.sparse.gossip.test_relay import exchanged

N, D, ROUNDS = 8, 20, 40
RATE, SETTLED = np.float32(0.2), 300
FIFTH = {"loss": 0.2, "twice": 0.2, "patience": 2}


def begun(tree: Graph, **settings: object) -> Network:
    network = Network(tree, d=D, codec="all/float32", algorithm="relay", rate=RATE, **settings)  # type: ignore[arg-type]
    network.join(network.memberships(1, tree))
    return network


@pytest.mark.parametrize("tree", [chain(N), star(N), binary_tree(N)], ids=["chain", "star", "binary tree"])
def test_with_all_messages_in_time_the_models_are_the_very_bits_of_the_rule(tree: Graph) -> None:
    network = begun(tree, ordered=True)
    network.run(ROUNDS)
    assert network.stalls == 0
    states, x = [relay.begin(near) for near in tree.neighbours], [network.start] * N
    for t in range(1, ROUNDS + 1):
        y = np.stack([network.trained(name(i), x[i], 1) for i in range(N)])
        states = exchanged(states, tree, y, t)
        x = [relay.average(states[i], y[i], N, network.start) for i in range(N)]
        np.testing.assert_array_equal(network.models(1, t), x)


@pytest.mark.parametrize("tree", [chain(N), star(N), binary_tree(N)], ids=["chain", "star", "binary tree"])
def test_relaysum_x_of_i_is_the_mean_over_j_of_y_of_j_tau_ij_exchanges_ago_bit_by_bit(tree: Graph) -> None:
    """Of models of small whole numbers, whose sums and eighths float32 has exactly."""
    network = begun(tree, ordered=True)
    rng = np.random.default_rng(5)
    whole = rng.integers(-1000, 1000, (ROUNDS + 1, N, D)).astype(np.float32)
    network.given = lambda device, number: whole[number, int(device[-2:])]
    network.run(ROUNDS)
    for i in range(N):
        delays = [max(far - 1, 0) for far in distances(tree, i)]
        for t in (1, 2, N, ROUNDS):
            expected = [whole[t - delay, j] if t > delay else network.start for j, delay in enumerate(delays)]
            np.testing.assert_array_equal(network.completed[name(i), 1, t].after, np.mean(expected, axis=0))


def optimum(network: Network, devices: list[int]) -> npt.NDArray[np.float64]:
    """Where the gradients of these devices sum to 0."""
    a = np.concatenate([network.problems.a[i] for i in devices]).astype(np.float64)
    b = np.concatenate([network.problems.b[i] for i in devices]).astype(np.float64)
    return np.asarray(np.linalg.lstsq(a, b, rcond=None)[0], dtype=np.float64)


def off(network: Network, epoch: int, number: int, devices: list[int]) -> float:
    """How far the mean of the models is from there, by its largest value."""
    mean = np.mean([newest_by(network, name(i), epoch, number) for i in devices], axis=0, dtype=np.float64)
    return float(np.abs(mean - optimum(network, devices)).max())


def newest_by(network: Network, device: str, epoch: int, number: int) -> npt.NDArray[np.float32]:
    """A device's model after this exchange, or after the last before it: it may have taken up a later number."""
    there = max(t for d, e, t in network.completed if (d, e) == (device, epoch) and t <= number)
    return network.completed[device, epoch, there].after


# Where nothing moves any more, old sums are what new ones would be, so loss leaves the place where it is. What is left
# is float32's rounding of models of a few units, over the share of the error that an exchange takes away.
TOLERANCE = 1e-6
# What is to be seen sooner.
SHORT, NEAR = 120, 5e-3


@pytest.mark.parametrize(
    "faults",
    [{}, FIFTH, {"loss": 0.05, "crash": 0.05, "patience": 2}],
    ids=["none", "a fifth lost and a fifth twice, all out of order", "crashes"],
)
def test_the_mean_of_the_models_comes_to_the_same_place_whatever_is_lost_and_stays_there(
    faults: dict[str, float],
) -> None:
    network = begun(binary_tree(N), **faults)
    network.run(SETTLED)
    assert (network.lost > 0) == ("loss" in faults)
    assert (network.stalls > 0) == ("loss" in faults)
    assert (network.crashes > 0) == ("crash" in faults)
    everyone = list(range(N))
    assert off(network, 1, 1, everyone) > 0.1
    assert off(network, 1, SETTLED * 4 // 5, everyone) < 10 * TOLERANCE
    assert off(network, 1, SETTLED, everyone) < TOLERANCE


def test_choco_without_lock_step_and_resync_is_drawn_away_by_the_same_loss() -> None:
    """The mean of the same devices' models, with differences that are lost for good."""
    network, tree = begun(binary_tree(N)), binary_tree(N)
    weights, q, rng = metropolis_hastings(tree), compressor("all/float32"), np.random.default_rng(1)

    def ended(loss: float) -> npt.NDArray[np.float64]:
        states, x = [choco.begin(network.start) for _ in range(N)], [network.start] * N
        for _ in range(SETTLED):
            y = [network.trained(name(i), x[i], 1) for i in range(N)]
            said = [choco.say(states[i], y[i], q)[1] for i in range(N)]
            for i in range(N):
                heard = {j: said[j] for j in tree.neighbours[i] if rng.random() >= loss}
                states[i] = choco.apply(states[i], said[i], float(weights[i, i]), heard, row(weights, i))
                x[i] = choco.move(states[i], y[i], 0.5)
        return np.asarray(np.mean(x, axis=0, dtype=np.float64))

    # Ten thousand times as far as what relay is allowed above.
    assert np.abs(ended(0.2) - ended(0.0)).max() > 10_000 * TOLERANCE


def test_a_device_that_is_lost_for_good_holds_the_others_up_for_their_patience_until_there_is_a_new_tree() -> None:
    network = begun(binary_tree(N), loss=0.05, patience=2)
    network.run(10)
    # Device 1 leads to 3, 4 and by these to 7.
    dead = network.members.pop(1)
    del network.nodes[dead]
    network.run(15)
    others = [0, *range(2, N)]
    assert dead in {d for n in network.nodes.values() if n.membership for d in n.membership.weights}
    network.join(network.memberships(2, binary_tree(N - 1)))
    network.run(SHORT, epoch=2)
    assert off(network, 2, SHORT, others) < NEAR
    assert all(n.membership is not None and dead not in n.membership.weights for n in network.nodes.values())


def test_devices_that_join_begin_where_their_neighbours_began_and_the_fleet_comes_to_the_new_place() -> None:
    network = begun(chain(6), loss=0.1, patience=3)
    network.run(20)
    old = {d: network.nodes[d].x for d in network.members}
    network.members.append(name(6))
    network.nodes[name(6)] = table.idle(network.start)
    network.join(network.memberships(2, chain(7), new=(name(6),)))
    network.run(SHORT, epoch=2)
    first = min(t for d, e, t in network.completed if (d, e) == (name(6), 2))
    np.testing.assert_array_equal(network.completed[name(6), 2, first].before, old[name(5)])
    assert off(network, 2, SHORT, list(range(7))) < NEAR


def test_a_newcomer_asks_for_a_base_for_as_long_as_it_has_none() -> None:
    network = begun(chain(3), ordered=True)
    node, shape = table.idle(network.start), network.shape(name(3))
    near = (Neighbour(name(0), 0.3, subtree=2), Neighbour(name(2), 0.3, subtree=1))
    said = Membership("run", 2, near, "all/float32", 1.0, newcomer=True, algorithm="relay")
    node, decisions = relay_node.step(node, table.Joined(said), shape)
    assert decisions == []
    asks = [table.Ask(name(0), 2, 0), table.Ask(name(2), 2, 0)]
    assert relay_node.step(node, table.Asked(over=True), shape) == (node, asks)
    base = np.full(D, 3.0, np.float32)
    dense = Compressor(parse_codec("all/float32"), LAYOUT).encode(base, 0)
    node, decisions = relay_node.step(node, table.Heard(name(2), 2, 0, dense), shape)
    assert decisions == []
    node, decisions = relay_node.step(node, table.Asked(over=True), shape)
    assert [type(d) for d in decisions] == [table.Train]
    np.testing.assert_array_equal(node.x, base)


def test_the_estimate_is_the_distance_from_the_fleets_mean_and_none_is_left_where_all_agree() -> None:
    network = begun(star(N), ordered=True, effort=Effort(1, 64))
    network.run(1)
    # Device 0 hears all others at once.
    y = np.stack([network.said[name(i), 1, 1] for i in range(N)])
    early = float(np.linalg.norm(y.mean(axis=0) - y[0]))
    assert network.completed[name(0), 1, 1].estimate == pytest.approx(early, rel=1e-5)
    network.run(60)
    assert max(network.completed[name(i), 1, 60].estimate for i in range(N)) < 1e-3 * early
    assert distance(list(network.models(1, 60))) < 1e-3 * early


@pytest.mark.parametrize("codec", ["all/float16", "all/bfloat16"])
def test_half_precision_comes_as_near_as_its_rounding(codec: str) -> None:
    network = begun(binary_tree(N), ordered=True)
    for device in network.members:
        network.nodes[device] = table.idle(network.start)
    network.codec = codec
    network.join(network.memberships(1, binary_tree(N)))
    network.run(SHORT)
    largest = float(np.abs(optimum(network, list(range(N)))).max())
    # Every sum is rounded once a link, of six at most, and n models are in it.
    relative = 2.0**-11 if codec == "all/float16" else 2.0**-8
    assert TOLERANCE < off(network, 1, SHORT, list(range(N))) < 6 * relative * largest


@pytest.mark.parametrize("codec", ["topk:0.1/float32/rice", "all/sign", "all/qsgd:4", "randk:0.1/float32", "all/int8"])
def test_a_codec_that_is_for_differences_is_refused(codec: str) -> None:
    with pytest.raises(ValueError, match="use all/float32, all/float16 or all/bfloat16"):
        relay.check_codec(parse_codec(codec))
    network = begun(chain(3))
    node, said = network.nodes[name(0)], network.memberships(2, chain(3))[name(0)]
    refused = relay_node.step(node, table.Joined(replace(said, codec=codec)), network.shape(name(0)))
    assert refused == (node, [table.Refused("coordinator", "codec")])


def test_a_sum_of_more_models_than_lie_that_way_and_one_that_is_none_are_refused() -> None:
    network = begun(chain(4), ordered=True)
    network.run(3)
    node, shape = network.nodes[name(1)], network.shape(name(1))
    codec, one = Compressor(parse_codec("all/float32"), LAYOUT), np.ones(D, np.float32)
    for sender, count, reason in ((0, 2, "count"), (2, 3, "count"), (2, 0, "count")):
        event = table.Heard(name(sender), 1, 9, pack(relay.Relayed(one, count, 9), codec))
        assert relay_node.step(node, event, shape) == (node, [table.Refused(name(sender), reason)])
    event = table.Heard(name(0), 1, 9, pack(relay.Relayed(one * np.float32(2e30), 1, 9), codec))
    assert relay_node.step(node, event, shape) == (node, [table.Refused(name(0), "values")])
    after, decisions = relay_node.step(node, table.Heard(name(0), 1, 9, bytes([1, 0, 0, 0, 7, 7])), shape)
    assert (after, [type(d) for d in decisions]) == (node, [table.Refused])
    assert pack(relay.Relayed(one, 2, 9), codec)[:4] == bytes([2, 0, 0, 0])


def test_what_is_older_than_what_is_held_or_of_no_neighbour_or_another_epoch_changes_nothing() -> None:
    network = begun(chain(4), ordered=True)
    network.run(5)
    node, shape = network.nodes[name(1)], network.shape(name(1))
    for event in (
        table.Heard(name(0), 1, 5, b""),
        table.Heard(name(3), 1, 9, b""),
        table.Heard(name(0), 2, 9, b""),
        table.Heard(name(0), 1, 0, b""),
        table.Trained(1, 3, network.start),
    ):
        assert relay_node.step(node, event, shape) == (node, [])


def test_who_asks_gets_its_own_newest_sum_and_nobody_elses() -> None:
    network = begun(chain(3), ordered=True)
    network.run(5)
    node, shape = network.nodes[name(1)], network.shape(name(1))
    assert node.sums is not None
    mine = node.sums.said[name(0)]
    assert mine != node.sums.said[name(2)]
    (again,) = relay_node.step(node, table.Wanted(name(0), 1, 5, (0,)), shape)[1]
    assert again == table.Publish(1, 5, mine, (0,), name(0))
    (newer,) = relay_node.step(node, table.Wanted(name(0), 1, 2, (0,)), shape)[1]
    assert newer == table.Publish(1, 5, mine, (), name(0))
    for wanted in (("stranger", 1, 5), (name(0), 1, 6), (name(0), 2, 5), ("stranger", 1, 0)):
        assert relay_node.step(node, table.Wanted(*wanted), shape)[1] == []


def test_who_is_late_takes_up_the_number_of_the_foremost() -> None:
    network = begun(chain(3))
    node, shape = network.nodes[name(0)], network.shape(name(0))
    codec, one = Compressor(parse_codec("all/float32"), LAYOUT), np.ones(D, np.float32)
    node, _ = relay_node.step(node, table.Heard(name(1), 1, 8, pack(relay.Relayed(one, 2, 8), codec)), shape)
    node, decisions = relay_node.step(node, table.Trained(1, 1, one), shape)
    assert [(d.number, type(d)) for d in decisions if not isinstance(d, table.Refused | table.Ask)] == [
        (1, table.Publish),
        (1, table.Completed),
        (8, table.Train),
    ]
    assert relay_node.missed(node) == ()
    # Nobody's model is left out: the newest sum has them all.
    np.testing.assert_array_equal(node.x, one * np.float32(2 / 3))


def test_who_was_not_waited_for_any_longer_is_named_until_something_comes() -> None:
    network = begun(chain(4), ordered=True)
    network.run(3)
    node, shape = network.nodes[name(1)], network.shape(name(1))
    assert (node.phase, node.number, relay_node.missed(node)) == ("training", 4, ())
    node, _ = relay_node.step(node, table.Trained(1, 4, network.start), shape)
    assert relay_node.waits_for(node) == relay_node.missed(node) == (name(0), name(2))
    node, decisions = relay_node.step(node, table.Asked(over=True), shape)
    assert [type(d) for d in decisions] == [table.Ask, table.Ask, table.Completed, table.Train]
    assert (relay_node.waits_for(node), relay_node.missed(node)) == ((), (name(0), name(2)))
    codec = Compressor(parse_codec("all/float32"), LAYOUT)
    late = pack(relay.Relayed(network.start, 1, 4), codec)
    node, _ = relay_node.step(node, table.Heard(name(0), 1, 4, late), shape)
    assert relay_node.missed(node) == (name(2),)


def test_a_device_alone_trains_by_itself() -> None:
    shape = table.Shape("alone", LAYOUT, [(4,)], np.zeros(4, np.float32))
    said = Membership("r", 1, (), "all/float32", 1.0, 0, True, algorithm="relay")
    node, decisions = relay_node.step(table.idle(shape.start), table.Joined(said), shape)
    node, decisions = relay_node.step(node, table.Trained(1, 1, np.ones(4, np.float32)), shape)
    assert [type(d) for d in decisions] == [table.Completed, table.Train]
    np.testing.assert_array_equal(node.x, np.ones(4, np.float32))


def test_another_algorithm_begins_at_once_from_the_models_that_there_are() -> None:
    network = begun(chain(4), ordered=True)
    network.run(5)
    left = network.models(1, 5)
    network.algorithm = "choco"
    network.join(network.memberships(2, chain(4), after=50))
    assert {n.membership.algorithm for n in network.nodes.values() if n.membership} == {"choco"}
    network.run(1, epoch=2)
    np.testing.assert_array_equal([network.completed[d, 2, 1].before for d in network.members], left)


def test_a_node_comes_back_from_the_disk_with_the_sums_it_has(tmp_path: Path) -> None:
    network = begun(binary_tree(4), ordered=True)
    network.run(5)
    node = network.nodes[name(1)]
    assert node.sums is not None
    with closing(sqlite3.connect(tmp_path / "agent.sqlite")) as database:
        store = NodeStore(database, D)
        store.keep(node)
        found = store.load()
    assert found is not None
    assert found.sums is not None
    assert (found.membership, found.phase, found.number) == (node.membership, node.phase, node.number)
    assert (found.sums.said, found.sums.number, found.sums.estimate) == (node.sums.said, 5, node.sums.estimate)
    np.testing.assert_array_equal(found.sums.fill, node.sums.fill)
    for neighbour, held in node.sums.heard.items():
        again = found.sums.heard[neighbour]
        assert [(m.number, m.count) for m in again] == [(m.number, m.count) for m in held]
        np.testing.assert_array_equal([m.total for m in again], [m.total for m in held])
