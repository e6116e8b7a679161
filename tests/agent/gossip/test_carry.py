"""What a device carries beside its node comes back from the disk bit for bit, or not at all."""

import sqlite3
from contextlib import closing
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from edge_agent.gossip.carry import Carry, Tally, momentum, pack_carry, unpack_carry
from edge_agent.gossip.ear import Key
from edge_agent.gossip.node import Node, idle
from edge_agent.gossip.store import NodeStore
from edge_agent.momentum import Memory
from edge_agent.runtimes.optimizers import OptimizerSettings
from protocol.gossip import Membership, Neighbour

D = 5
VECTOR = (np.arange(D) / 3).astype(np.float32)
MEMORY = Memory("qg", "run", 2, 7, 0.3, VECTOR, -VECTOR)
CARRY = Carry("run", bytes(8), ((2, 2), (1,)), VECTOR[:2], MEMORY, Tally("run/1", 3, 1.5, 0.1), (Key("bb", 2, b"k"),))


def joined(epoch: int, *, newcomer: bool) -> Node:
    said = Membership("run", epoch, (Neighbour("bb", 0.5),), "all/sign", 0.5, newcomer=newcomer)
    return Node("training", (2 * VECTOR).astype(np.float32), said, 1)


def test_a_carry_comes_back_as_it_was() -> None:
    found = unpack_carry(pack_carry(CARRY))
    assert found is not None
    assert found.d == D
    for field in fields(Carry):
        if field.name not in ("buffers", "memory"):
            assert getattr(found, field.name) == getattr(CARRY, field.name)
    assert found.memory is not None
    assert (found.memory.kind, found.memory.rate) == ("qg", 0.3)
    for one, other in ((found.buffers, VECTOR[:2]), (found.memory.vector, VECTOR), (found.memory.base, -VECTOR)):
        np.testing.assert_array_equal(one, other)


def test_a_carry_that_was_altered_anywhere_is_none() -> None:
    data = pack_carry(CARRY)
    for at in range(len(data)):
        assert unpack_carry(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None
    assert unpack_carry(b"") is None


def test_node_and_carry_are_kept_in_one_transaction(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "one")) as database:
        store = NodeStore(database, D)
        store.carry = b"first"
        store.keep(idle(VECTOR))
        # A carry that the disk does not take leaves the node that was there.
        store.carry = None
        database.execute("CREATE TRIGGER full BEFORE INSERT ON gossip_carry BEGIN SELECT raise(ABORT, 'full'); END")
        store.carry = b"second"
        with pytest.raises(sqlite3.IntegrityError):
            store.keep(idle(-VECTOR))
    with closing(sqlite3.connect(tmp_path / "one")) as database:
        store = NodeStore(database, D)
        assert store.load_carry() == b"first"
        found = store.load()
        assert found is not None
        np.testing.assert_array_equal(found.x, VECTOR)


@pytest.mark.parametrize(
    ("node", "settings", "lasts"),
    [
        (joined(2, newcomer=False), OptimizerSettings("qg", momentum=0.9), True),
        (joined(3, newcomer=False), OptimizerSettings("qg", momentum=0.9), True),
        (joined(2, newcomer=True), OptimizerSettings("qg", momentum=0.9), True),
        (joined(3, newcomer=True), OptimizerSettings("qg", momentum=0.9), False),
        (joined(2, newcomer=False), OptimizerSettings(momentum=0.9, keep_momentum=True), False),
    ],
    ids=["same epoch", "next epoch", "joined in this epoch", "joined since", "another optimiser"],
)
def test_momentum_lasts_until_a_device_joins_anew_or_has_another_optimiser(
    node: Node, settings: OptimizerSettings, lasts: bool
) -> None:
    found = momentum(CARRY, node, settings)
    assert found is not None
    assert found.any() == lasts
    assert momentum(CARRY, node, OptimizerSettings(momentum=0.9)) is None
