"""What a broken or hostile neighbour can do to a device: it costs neither memory nor airtime without end, and what it
says wrongly is refused before it is mixed in."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from edge_agent.gossip import node as table
from edge_agent.gossip.node import Node, Shape
from edge_agent.gossip.talk import AGAIN_AFTER_S, MOST_BEGUN, Talk
from protocol.gossip import MAX_WANTED, PART_BYTES, Algorithm, Membership, Neighbour, Part, Standing, Want, parts
from sparse.codecs import parse_codec
from sparse.gossip.choco import Compressor
from tests.sparse.gossip.network import LAYOUT

# So large that a payload takes two parts.
D = PART_BYTES // 4 + 100


@dataclass
class Witness:
    """Keeps nodes and counts what is said."""

    said: list[Part] = field(default_factory=list)

    def keep(self, node: Node) -> None:
        """Nothing here is lost."""

    def publish(self, part: Part) -> bool:
        self.said.append(part)
        return True

    def tell(self, neighbour: str, part: Part) -> bool:
        return self.publish(part)

    def ask(self, neighbour: str, want: Want) -> bool:
        return True

    def report(self, standing: Standing) -> bool:
        return True


def begun(algorithm: Algorithm = "choco") -> tuple[Talk, Witness]:
    """One device with one neighbour, "bb", from which it has heard nothing yet."""
    witness, shape = Witness(), Shape("aa", LAYOUT, [(D,)], np.zeros(D, np.float32))
    talk = Talk(shape, table.idle(shape.start), witness, witness, lambda _: None)
    near = (Neighbour("bb", 0.5, newcomer=True, subtree=1),)
    talk.told(Membership("run", 1, near, "all/float32", 1.0, newcomer=True, algorithm=algorithm), 0.0)
    return talk, witness


def payload(values: np.ndarray) -> bytes:
    return Compressor(parse_codec("all/float32"), LAYOUT, [(D,)]).encode(values, 0)


def test_a_storm_of_questions_is_answered_with_each_part_once_a_moment() -> None:
    talk, witness = begun()
    witness.said.clear()
    rng, now = np.random.default_rng(1), 10.0
    for _ in range(500):
        talk.heard("bb", Want(1, 0, tuple(rng.integers(0, 9, MAX_WANTED).tolist())), now)
    assert sorted(part.place for part in witness.said) == [0, 1]
    talk.heard("bb", Want(1, 0, (1, 1)), now + AGAIN_AFTER_S)
    assert [part.place for part in witness.said][2:] == [1]
    assert sum(len(places) for places in talk._said.values()) == 2


@pytest.mark.parametrize("algorithm", ["choco", "relay"])
def test_payloads_that_are_begun_and_never_ended_are_no_more_than_two_of_a_neighbour(algorithm: Algorithm) -> None:
    talk, _ = begun(algorithm)
    data = payload(np.ones(D, np.float32))
    for number in range(1, 200):
        talk.heard("bb", next(parts(1, number, data + bytes(0 if algorithm == "choco" else 4))), 1.0)
    assert len(talk._collected) == (1 if algorithm == "choco" else MOST_BEGUN)
    assert sum(len(part) for one in talk._collected.values() for part in one.held.values()) <= MOST_BEGUN * PART_BYTES


def test_a_payload_that_is_said_anew_is_taken_though_parts_of_another_came_in_its_name() -> None:
    talk, _ = begun()
    old, new = payload(np.ones(D, np.float32)), payload(np.full(D, 2, np.float32))
    talk.heard("bb", next(parts(1, 0, old)), 1.0)
    for part in parts(1, 0, new):
        talk.heard("bb", part, 2.0)
    assert talk.node.phase == "training"


@pytest.mark.parametrize("value", [3e38, -3e38, 2 * table.LARGEST])
def test_values_that_no_model_has_are_refused_and_the_node_stays_as_it_was(value: float) -> None:
    talk, _ = begun()
    before, values = talk.node, np.zeros(D, np.float32)
    values[7] = value
    for part in parts(1, 0, payload(values)):
        talk.heard("bb", part, 1.0)
    assert talk.node is before
    assert talk.refused == {"bb values": 1}


def test_a_relay_newcomer_refuses_a_base_with_values_that_no_model_has() -> None:
    talk, _ = begun()
    near = (Neighbour("bb", 0.5, subtree=1),)
    told = Membership("run", 2, near, "all/float32", 1.0, newcomer=True, algorithm="relay")
    talk.told(told, 2.0)
    for part in parts(2, 0, payload(np.full(D, 1e38, np.float32))):
        talk.heard("bb", part, 3.0)
    assert (talk.node.phase, talk.refused) == ("gathering", {"bb values": 1})
