"""Where a device without a hub keeps its node, and what it carries beside it: rows of the agent's store, written in one
transaction a step."""

import logging
import sqlite3
from typing import Any

import cbor2
import numpy as np
import numpy.typing as npt

from edge_agent.gossip.node import Node
from edge_agent.gossip.sums import Sums
from protocol.database import sealed, unsealed
from protocol.failpoints import reached
from protocol.gossip import Effort, Membership
from protocol.records import RecordError, read_record, write_record
from sparse.gossip.choco import Choco
from sparse.gossip.relay import Relayed

log = logging.getLogger("edge-agent")

# Beside the store's own tables, which agents of before this do not look at.
_TABLES = (
    "CREATE TABLE IF NOT EXISTS gossip (one INTEGER PRIMARY KEY CHECK (one = 1), node BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS gossip_carry (one INTEGER PRIMARY KEY CHECK (one = 1), carry BLOB NOT NULL)",
)

# What is raised of bytes that are no node of this model.
NO_NODE = (RecordError, cbor2.CBORDecodeError, ValueError, KeyError, TypeError)


class NodeStore:
    """The node of this device in an AgentStore's database, for models of d values. carry: what is kept in the same
    transaction, as bytes; None where there is nothing."""

    def __init__(self, database: sqlite3.Connection, d: int = 0) -> None:
        self._database, self.d = database, d
        self.carry: bytes | None = None
        with database:
            for table in _TABLES:
                database.execute(table)

    def keep(self, node: Node) -> None:
        """Durable when it returns. What was heard of differences is not kept; neighbours say it again."""
        data = pack_node(node)
        with self._database:
            self._database.execute("INSERT OR REPLACE INTO gossip VALUES (1, ?)", (data,))
            if self.carry is not None:
                self._database.execute("INSERT OR REPLACE INTO gossip_carry VALUES (1, ?)", (self.carry,))
            reached("agent.gossip-keeping")
        reached("agent.gossip-kept")

    def load_carry(self) -> bytes | None:
        """What was kept beside the node."""
        row = self._database.execute("SELECT carry FROM gossip_carry").fetchone()
        self.carry = row[0] if row else None
        return self.carry

    def load(self) -> Node | None:
        """None where there is none, of a model of another size, or where it was altered: the device is a newcomer."""
        row = self._database.execute("SELECT node FROM gossip").fetchone()
        if row is None:
            return None
        try:
            return unpack_node(row[0], self.d)
        except NO_NODE as error:
            log.error("the state of gossip is let go: %s; this device begins again as a newcomer", error)
            return None

    def forget(self) -> None:
        with self._database:
            self._database.execute("DELETE FROM gossip")
            self._database.execute("DELETE FROM gossip_carry")
        self.carry = None


def pack_node(node: Node) -> bytes:
    """The bytes of a node, the last four of them a CRC-32."""
    return sealed(_dumped(node))


def unpack_node(data: bytes, d: int) -> Node:
    """The node in these bytes, of models of d values. Raises one of NO_NODE."""
    said = unsealed(data)
    if said is None:
        raise ValueError("its CRC-32 differs")
    return _loaded(cbor2.loads(said), d)


def _dumped(node: Node) -> bytes:
    choco = node.choco
    fields: dict[str, Any] = {
        "phase": node.phase,
        "number": node.number,
        "x": node.x.astype("<f4").tobytes(),
        "before": None if node.before is None else node.before.astype("<f4").tobytes(),
        "h": None if choco is None else choco.h.astype("<f8").tobytes(),
        "s": None if choco is None else choco.s.astype("<f8").tobytes(),
        "sums": None if node.sums is None else _dumped_sums(node.sums),
        "payloads": [[*key, payload] for key, payload in sorted(node.payloads.items())],
        "membership": None if node.membership is None else write_record(node.membership),
        "next": None if node.next is None else write_record(node.next),
        "effort": write_record(node.effort),
    }
    return cbor2.dumps(fields)


def _loaded(fields: dict[str, Any], d: int) -> Node:
    """Raises ValueError and its like for what is no node of this model."""
    x = _vector(fields["x"], "<f4", d)
    h = None if fields["h"] is None else _vector(fields["h"], "<f8", d)
    s = None if fields["s"] is None else _vector(fields["s"], "<f8", d)
    return Node(
        fields["phase"],
        x.astype(np.float32),
        None if fields["membership"] is None else read_record(Membership, fields["membership"]),
        fields["number"],
        None if h is None or s is None else Choco(h.astype(np.float64), s.astype(np.float64)),
        None if fields["before"] is None else _vector(fields["before"], "<f4", d).astype(np.float32),
        {(epoch, number): payload for epoch, number, payload in fields["payloads"]},
        None if fields["next"] is None else read_record(Membership, fields["next"]),
        read_record(Effort, fields["effort"]),
        sums=None if fields.get("sums") is None else _loaded_sums(fields["sums"], d),
    )


def _dumped_sums(sums: Sums) -> dict[str, Any]:
    return {
        "fill": sums.fill.astype("<f4").tobytes(),
        "heard": [
            [neighbour, [[m.number, m.count, m.total.astype("<f4").tobytes()] for m in held]]
            for neighbour, held in sorted(sums.heard.items())
        ],
        "said": [[neighbour, payload] for neighbour, payload in sorted(sums.said.items())],
        "number": sums.number,
        "estimate": sums.estimate,
    }


def _loaded_sums(fields: dict[str, Any], d: int) -> Sums:
    heard = {
        neighbour: tuple(
            Relayed(_vector(total, "<f4", d).astype(np.float32), count, number) for number, count, total in held
        )
        for neighbour, held in fields["heard"]
    }
    fill = _vector(fields["fill"], "<f4", d).astype(np.float32)
    return Sums(fill, heard, dict(fields["said"]), fields["number"], fields["estimate"])


def _vector(data: bytes, kind: str, d: int) -> npt.NDArray[Any]:
    vector = np.frombuffer(data, kind)
    if len(vector) != d:
        raise ValueError(f"a vector of {len(vector)} where the model has {d}")
    return vector
