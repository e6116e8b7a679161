"""What a device without a hub carries from exchange to exchange beside its node: momentum, running statistics, keys,
and what its next update is to tell of the training.

Momentum is quasi-global (Lin, Karimireddy, Stich, Jaggi 2021, arXiv 2102.04761, algorithm 1; sparse/gossip) or the
velocity of SGD, where the task has it kept. What is kept of a training is mh and x as they were before it, and the sum
of its rates; mh moves on when the next training begins, from the model that the exchanges between the two gave. So a
restart finds the very bits, and exchanges without a training count to the one before them.

Running statistics are the device's own, and no neighbour's: lossy differences would make variances of them that are
below zero. They are averaged with the models that are collected.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import cbor2
import numpy as np

from edge_agent.gossip.ear import Key
from edge_agent.gossip.node import Node, node_epoch
from edge_agent.momentum import Memory, pack_memory, unpack_memory
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.training import Trained
from protocol.database import sealed, unsealed
from protocol.messages import Task
from protocol.records import RecordError, read_record, write_record
from sparse.gossip.quasi_global import QuasiGlobal, refresh


@dataclass(frozen=True, slots=True)
class Tally:
    """Of one task: steps, the sum of their losses, and seconds of training."""

    task: str = ""
    steps: int = 0
    losses: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Carry:
    """layout, shapes: of the parameters that neighbours exchange. buffers: float32[b], after the last training. memory:
    of that training, where its optimiser keeps something; its round is the epoch, its version the number."""

    run: str
    layout: bytes
    shapes: tuple[tuple[int, ...], ...]
    buffers: Vector
    memory: Memory | None = None
    tally: Tally = field(default_factory=Tally)
    keys: tuple[Key, ...] = ()

    @property
    def d(self) -> int:
        """How many parameters that are."""
        return sum(int(np.prod(shape)) for shape in self.shapes)

    def of(self, task: Task) -> Tally:
        """What was done for a task so far."""
        return self.tally if self.tally.task == task.name else Tally(task.name)


def momentum(carry: Carry, node: Node, settings: OptimizerSettings) -> Vector | None:
    """float32[d] that the training which the node is about to do begins with; None of an optimiser that keeps none."""
    if not settings.carries:
        return None
    memory, kind = carry.memory, "qg" if settings.name == "qg" else "sgd"
    joined = node.membership is not None and node.membership.newcomer
    # Who joined since has a model of others, and no momentum of its own.
    if memory is None or memory.kind != kind or (joined and memory.round < node_epoch(node)):
        return np.zeros(len(node.x), np.float32)
    if kind == "sgd":
        return memory.vector
    rule = QuasiGlobal(settings.momentum, settings.mu, settings.nesterov)
    found = refresh(rule, memory.vector, memory.base, node.x, memory.rate)
    return found if np.isfinite(found).all() else np.zeros(len(node.x), np.float32)


def trained(
    carry: Carry,
    node: Node,
    task: Task,
    settings: OptimizerSettings,
    given: Vector | None,
    result: Trained,
    own: Vector,
) -> Carry:
    """After a training of the node's number. given: the momentum that it began with; own: float32[b], its buffers."""
    memory = None
    if given is not None and result.momentum is not None:
        rate = task.learning_rate * result.steps
        where = node_epoch(node), node.number, rate
        if settings.name == "qg":
            memory = Memory("qg", task.run, *where, given, node.x)
        else:
            memory = Memory("sgd", task.run, *where, result.momentum.copy(), np.zeros(0, np.float32))
    so_far = carry.of(task)
    tally = Tally(
        task.name,
        so_far.steps + result.steps,
        so_far.losses + result.loss * result.steps,
        so_far.seconds + result.seconds,
    )
    return replace(carry, buffers=own.copy(), memory=memory, tally=tally)


def pack_carry(carry: Carry) -> bytes:
    """The bytes of a carry, the last four of them a CRC-32."""
    fields: dict[str, Any] = {
        "run": carry.run,
        "layout": carry.layout,
        "shapes": [list(shape) for shape in carry.shapes],
        "buffers": carry.buffers.astype("<f4", copy=False).tobytes(),
        "memory": None if carry.memory is None else pack_memory(carry.memory),
        "tally": write_record(carry.tally),
        "keys": [write_record(key) for key in carry.keys],
    }
    return sealed(cbor2.dumps(fields))


def unpack_carry(data: bytes) -> Carry | None:
    """The carry in these bytes; None where they were altered."""
    said = unsealed(data)
    if said is None:
        return None
    try:
        fields = cbor2.loads(said)
        memory = None if fields["memory"] is None else unpack_memory(fields["memory"])
        if fields["memory"] is not None and memory is None:
            return None
        return Carry(
            fields["run"],
            fields["layout"],
            tuple(tuple(shape) for shape in fields["shapes"]),
            np.frombuffer(fields["buffers"], "<f4").astype(np.float32),
            memory,
            read_record(Tally, fields["tally"]),
            tuple(read_record(Key, key) for key in fields["keys"]),
        )
    except (RecordError, cbor2.CBORDecodeError, ValueError, KeyError, TypeError):
        return None
