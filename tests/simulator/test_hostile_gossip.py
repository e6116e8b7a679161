"""What a neighbour that lies can do to real agents: no exchange that was not asked for, and nothing of another run."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from edge_agent.gossip.gossiping import position
from edge_agent.gossip.node import Node
from protocol.envelope import Envelope, encode
from protocol.gossip import MAX_NUMBER, parts
from protocol.restraint import BURST
from sparse.codecs import parse_codec
from sparse.gossip.choco import Compressor
from tests.simulator.gossip_hall import RUN, Hall
from tests.simulator.test_gossip_agents import EXACT, START
from tests.simulator.test_relay_agents import RELAY
from tests.tiny import TOTAL


def node_of(hall: Hall, device: str) -> Node:
    talk = hall.devices[device].agent._gossiping._talk
    assert talk is not None
    return talk.node


def has_come(hall: Hall, device: str, exchange: int) -> bool:
    talk = hall.devices[device].agent._gossiping._talk
    return talk is not None and position(talk.node) >= exchange


@pytest.mark.parametrize("number", [8, 1000, MAX_NUMBER - 1, MAX_NUMBER])
def test_a_sum_of_an_exchange_that_was_not_asked_for_takes_nobody_there(
    tmp_path: Path, halls: list[Hall], number: int
) -> None:
    hall = Hall(tmp_path, RELAY)
    halls.append(hall)
    hall.assign(1, START, 6)
    hall.until(lambda: all(has_come(hall, name, 2) for name in hall.devices))
    told = node_of(hall, "aa").membership
    assert told is not None
    talk = hall.devices["aa"].agent._gossiping._talk
    assert talk is not None
    shape, liar = talk.shape, told.neighbours[0].device
    compressor = Compressor(parse_codec("all/float32"), shape.layout, shape.shapes)
    payload = (1).to_bytes(4, "little") + compressor.encode(np.zeros(TOTAL, np.float32), 0)
    for part in parts(told.epoch, number, payload):
        topic = hall.topics.gossip_to(liar, "aa")
        hall.transport.publish(topic, encode(Envelope(1, 10_000 + number, 0, part)))
    hall.collect(1)
    assert {position(node_of(hall, name)) for name in hall.devices} == {6}


def test_what_a_broker_kept_of_another_run_is_refused(tmp_path: Path, halls: list[Hall]) -> None:
    hall = Hall(tmp_path, EXACT)
    halls.append(hall)
    hall.assign(1, START, 3)
    hall.collect(1)
    talk = hall.devices["aa"].agent._gossiping._talk
    assert talk is not None
    node = talk.node
    assert node.membership is not None
    liar = node.membership.neighbours[0].device
    for run, said in (("another", {f"{liar} layout": 1}), (RUN, {f"{liar} layout": 1})):
        layout = hashlib.sha256(hall.layout.digest + run.encode()).digest()[:8]
        values = Compressor(parse_codec("all/float32"), layout, talk.shape.shapes).encode(node.x, 0)
        for part in parts(node.membership.epoch, node.number, values):
            talk.heard(liar, part, hall.now)
        assert talk.refused == said
    assert (liar, node.number) in talk.node.heard


def test_who_speaks_by_any_number_of_names_fills_neither_log_nor_memory(
    tmp_path: Path, halls: list[Hall], caplog: pytest.LogCaptureFixture
) -> None:
    hall = Hall(tmp_path, EXACT)
    halls.append(hall)
    for i in range(200):
        hall.transport.publish(hall.topics.gossip(f"nobody-{i}"), b"junk")
    hall.turn()
    assert sum("gossip rejected" in record.message for record in caplog.records) == BURST * len(hall.devices)
    assert all(len(device.agent._restraint._kinds) <= 1 for device in hall.devices.values())
