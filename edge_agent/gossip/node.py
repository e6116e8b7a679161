"""What a device of a fleet without a hub decides, as a table without clocks, sockets or disks: CHOCO-SGD in lock-step.

    phase       it has                                it waits for                      then
    idle        nothing                               a membership                      gathering
    gathering   a membership; if no newcomer its base the bases of its neighbours       training, number 1
    training    x, h, s                               y of its own training             waiting, with y and its payload
    waiting     y, its payload of this number         that payload of every neighbour   training or waiting, number + 1

A device goes on only when it has this number's payload of every neighbour, each once, so that however many messages are
lost, doubled or overtaken, the models are the very bits of a run without. Nobody can be more than one number ahead of a
neighbour; hence two payloads are all that anyone can still be asked for, and all that must be kept.

`step` gives the next node and what to do. Nodes are kept before anything is done: what is in `Publish` may be said
again after any crash, for the node that made it is the node that is found again. What was heard of neighbours is not
kept; it is asked for again. A restart in the middle of an exchange costs no more than that.

A new membership is a new epoch with new weights. Each device begins it with the model that it has (a step that was not
yet exchanged stays in it) and sends that model whole, as number 0; h and s are made anew of these. A newcomer begins
with the mean of its neighbours' bases. Where an epoch ends for all after the same number, nothing of a mean is lost;
where it ends at once, because a neighbour has died, one exchange may have happened on one side of a link alone.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from edge_agent.gossip.sums import Sums
from protocol.gossip import Effort, Membership
from sparse.codecs import PayloadError, Shapes, max_payload_bytes, parse_codec
from sparse.codecs.spec import DENSE
from sparse.gossip.choco import Choco, Compressor, apply, move, rebuilt, say

Vector = npt.NDArray[np.float32]
Phase = Literal["idle", "gathering", "training", "waiting"]
# Of one's own: that of this number, and that of the one before.
KEPT = 2
# Of a value that neighbours are told. What is over it is of no model, and sums of such would leave float32's range: a
# device with an infinity in its model could never say it again.
LARGEST = 1e30


@dataclass(frozen=True, slots=True)
class Shape:
    """What payloads are made of: the layout's digest and tensors, and the device's name, of which drawn codecs take
    their seed. start: the model that all devices have at first, float32[d]."""

    device: str
    layout: bytes
    shapes: Shapes
    start: Vector


@dataclass(frozen=True, slots=True)
class Node:
    """What is kept.

    number: of the difference that is made or exchanged, 0 while bases are gathered. x: while waiting the model before
    the exchange (y). before: the model that the training began at. payloads: one's own, by epoch and number. next: a
    membership that waits for its `after`. heard: by neighbour and number, decoded; not kept on disk. choco and sums are
    of one algorithm each; sums are kept.
    """

    phase: Phase
    x: Vector
    membership: Membership | None = None
    number: int = 0
    choco: Choco | None = None
    before: Vector | None = None
    payloads: Mapping[tuple[int, int], bytes] = field(default_factory=dict)
    next: Membership | None = None
    effort: Effort = field(default_factory=Effort)
    heard: Mapping[tuple[str, int], Vector] = field(default_factory=dict)
    sums: Sums | None = None


# Events


@dataclass(frozen=True, slots=True)
class Joined:
    membership: Membership


@dataclass(frozen=True, slots=True)
class Trained:
    """y, float32[d], of the training of this epoch and number."""

    epoch: int
    number: int
    y: Vector


@dataclass(frozen=True, slots=True)
class Heard:
    """A whole payload of a neighbour."""

    sender: str
    epoch: int
    number: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Wanted:
    """A neighbour misses a payload, or parts of it."""

    sender: str
    epoch: int
    number: int
    places: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """It has been waiting for a while. over: for longer than its membership's patience."""

    over: bool = False


@dataclass(frozen=True, slots=True)
class Restarted:
    """The node was found on the disk by a new process."""


@dataclass(frozen=True, slots=True)
class Adjusted:
    effort: Effort


Event = Joined | Trained | Heard | Wanted | Asked | Restarted | Adjusted


# Decisions


@dataclass(frozen=True, slots=True)
class Train:
    """Take so many steps from x, and come back with `Trained`."""

    epoch: int
    number: int
    x: Vector
    steps: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Say a payload to all neighbours, or to one, whole or in parts."""

    epoch: int
    number: int
    payload: bytes
    places: tuple[int, ...] = ()
    to: str | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Say to a neighbour that its payload of this number is missing."""

    neighbour: str
    epoch: int
    number: int


@dataclass(frozen=True, slots=True)
class Completed:
    """An exchange: the model that the training began at, that which the exchange gave, and how far from the others it
    is."""

    epoch: int
    number: int
    before: Vector
    after: Vector
    estimate: float


@dataclass(frozen=True, slots=True)
class Refused:
    """A payload that cannot be what was agreed on."""

    sender: str
    reason: str


Decision = Train | Publish | Ask | Completed | Refused

# Makes an epoch's first node.
Begin = Callable[[Node, Membership, Shape], tuple[Node, list[Decision]]]


def idle(start: Vector) -> Node:
    return Node("idle", start)


def step(node: Node, event: Event, shape: Shape) -> tuple[Node, list[Decision]]:
    """The next node and what to do; the same node (`is`) where there is nothing to keep."""
    match event:
        case Joined(membership):
            return joined(node, membership, shape, _begin)
        case Trained(epoch, number, y):
            return _trained(node, epoch, number, y, shape)
        case Heard():
            return _heard(node, event, shape)
        case Wanted(_, epoch, number, places):
            return node, _again(node, epoch, number, places)
        case Asked():
            return node, _asks(node)
        case Restarted():
            return node, _restarted(node)
        case Adjusted(effort):
            return replace(node, effort=effort), []


def waits_for(node: Node) -> tuple[str, ...]:
    """The neighbours whose payload of this number is missing."""
    if node.membership is None or node.phase not in ("gathering", "waiting"):
        return ()
    return tuple(n.device for n in node.membership.neighbours if (n.device, node.number) not in node.heard)


def takes(node: Node, sender: str, epoch: int, number: int) -> bool:
    """Whether a payload of this name would count: of a neighbour, of this number or the next, and once."""
    membership = node.membership
    due = membership is not None and epoch == membership.epoch and sender in membership.weights
    return due and 0 <= number - node.number <= 1 and (sender, number) not in node.heard


def most_bytes(node: Node, number: int, shape: Shape) -> int:
    """That a payload of this number can have."""
    assert node.membership is not None
    spec = DENSE if number == 0 else parse_codec(node.membership.codec)
    return max_payload_bytes(len(node.x), spec, shapes=shape.shapes)


def joined(node: Node, membership: Membership, shape: Shape, begin: Begin) -> tuple[Node, list[Decision]]:
    """After it was told of a membership, by whichever table begins its epoch."""
    match _when(node, membership):
        case "known":
            return node, []
        case "later":
            return replace(node, next=membership), []
        case "now":
            return begin(node, membership, shape)


def _when(node: Node, membership: Membership) -> Literal["known", "later", "now"]:
    """When an epoch begins: another algorithm has nothing to wait for in an exchange of this one."""
    now = node.membership
    if now is None:
        return "now"
    # Of the epoch that it waits to begin, it may be told to begin at once.
    hurry = node.next is not None and membership.epoch == node.next.epoch and membership.after == 0
    if membership.run == now.run and membership.epoch <= node_epoch(node, newest=True) and not hurry:
        return "known"
    waits = node.phase in ("training", "waiting") and node.number <= membership.after
    return "later" if waits and membership.algorithm == now.algorithm else "now"


def _begin(node: Node, membership: Membership, shape: Shape) -> tuple[Node, list[Decision]]:
    """The epoch's first node: with its base, unless a newcomer must hear those of others before."""
    # Who is still at the last exchange of the epoch before may ask for its payload.
    last = dict([max(node.payloads.items())]) if node.payloads else {}
    begun = Node("gathering", node.x, membership, payloads=last, effort=membership.effort)
    if membership.newcomer:
        if all(n.newcomer for n in membership.neighbours):
            begun = replace(begun, x=shape.start)
        else:
            return begun, []
    return _with_base(begun, shape)


def _with_base(node: Node, shape: Shape) -> tuple[Node, list[Decision]]:
    """The node with its base made, which is then said."""
    assert node.membership is not None
    payload = Compressor(DENSE, shape.layout, shape.shapes).encode(node.x, 0)
    node = replace(node, payloads={**node.payloads, (node_epoch(node), 0): payload})
    node, after = _gathered(node, shape)
    return node, [Publish(node_epoch(node), 0, payload), *after]


def _gathered(node: Node, shape: Shape) -> tuple[Node, list[Decision]]:
    """Goes on to training once every base is there."""
    membership = node.membership
    assert membership is not None
    if (membership.epoch, 0) not in node.payloads:
        known = {n.device: n.weight for n in membership.neighbours if not n.newcomer}
        if any((device, 0) not in node.heard for device in known):
            return node, []
        total = sum(known.values())
        mean = sum((weight / total) * node.heard[device, 0].astype(np.float64) for device, weight in known.items())
        return _with_base(replace(node, x=np.asarray(mean, dtype=np.float32)), shape)
    if waits_for(node):
        return node, []
    h = node.x.astype(np.float64)
    copies = {n.device: node.heard[n.device, 0].astype(np.float64) for n in membership.neighbours}
    s = h.copy() if not copies else _sum(h, copies, membership)
    return _next(replace(node, choco=Choco(h, s)))


def _next(node: Node) -> tuple[Node, list[Decision]]:
    """Training for the number after this one, with what was heard of it already."""
    number = node.number + 1
    heard = {key: vector for key, vector in node.heard.items() if key[1] >= number}
    node = replace(node, phase="training", number=number, before=node.x, heard=heard)
    return node, [train_of(node)]


def train_of(node: Node) -> Train:
    """Between two trainings there are exchanges alone, for as many rounds as the effort says."""
    exchange_only = (node.number - 1) % node.effort.gossip_rounds != 0
    return Train(node_epoch(node), node.number, node.x, 0 if exchange_only else node.effort.local_steps)


def _trained(node: Node, epoch: int, number: int, y: Vector, shape: Shape) -> tuple[Node, list[Decision]]:
    if node.phase != "training" or (epoch, number) != (node_epoch(node), node.number):
        return node, []
    assert node.choco is not None
    payload, _ = say(node.choco, y, _compressor(node, shape), _seed(shape, epoch, number))
    kept = {key: p for key, p in node.payloads.items() if key[0] < epoch or key[1] > number - KEPT}
    node = replace(node, phase="waiting", x=y, payloads={**kept, (epoch, number): payload})
    node, after = _exchanged(node, shape)
    return node, [Publish(epoch, number, payload), *after]


def _heard(node: Node, event: Heard, shape: Shape) -> tuple[Node, list[Decision]]:
    if not takes(node, event.sender, event.epoch, event.number):
        return node, []
    q = Compressor(DENSE, shape.layout, shape.shapes) if event.number == 0 else _compressor(node, shape)
    try:
        vector = q.decode(event.payload, len(node.x))
    except PayloadError as error:
        return node, [Refused(event.sender, error.reason)]
    if not bounded(vector):
        return node, [Refused(event.sender, "values")]
    node = replace(node, heard={**node.heard, (event.sender, event.number): vector})
    if node.phase == "gathering":
        return _gathered(node, shape)
    return _exchanged(node, shape)


def _exchanged(node: Node, shape: Shape) -> tuple[Node, list[Decision]]:
    """Completes the exchange once every neighbour's payload is there."""
    membership = node.membership
    if membership is None or node.phase != "waiting" or waits_for(node):
        return node, []
    assert node.choco is not None
    assert node.before is not None
    q, names = _compressor(node, shape), sorted(membership.weights)
    own = q.decode(node.payloads[membership.epoch, node.number], len(node.x))
    heard = {i: node.heard[name, node.number] for i, name in enumerate(names)}
    weights = {i: membership.weights[name] for i, name in enumerate(names)}
    choco = apply(node.choco, own, membership.own_weight, heard, weights)
    after = move(choco, node.x, membership.gamma)
    estimate = apart(choco)
    done = Completed(membership.epoch, node.number, node.before, after, estimate)
    node = replace(node, x=after, choco=choco)
    if node.next is not None and node.number >= node.next.after:
        node, decisions = _begin(node, node.next, shape)
    else:
        node, decisions = _next(node)
    return node, [done, *decisions]


def _again(node: Node, epoch: int, number: int, places: tuple[int, ...]) -> list[Decision]:
    """What a neighbour misses, if it was made and may still be missed."""
    payload = node.payloads.get((epoch, number))
    return [] if payload is None else [Publish(epoch, number, payload, places)]


def _asks(node: Node) -> list[Decision]:
    return [Ask(name, node_epoch(node), node.number) for name in waits_for(node)]


def _restarted(node: Node) -> list[Decision]:
    """Whatever was decided last may not have been done."""
    said: list[Decision] = []
    if node.payloads:
        newest = max(node.payloads)
        said.append(Publish(*newest, node.payloads[newest]))
    if node.phase == "training":
        said.append(train_of(node))
    return [*said, *_asks(node)]


def node_epoch(node: Node, *, newest: bool = False) -> int:
    """The epoch that it is in, 0 before any; or the newest that it has heard of."""
    if newest and node.next is not None:
        return node.next.epoch
    return node.membership.epoch if node.membership is not None else 0


def apart(choco: Choco) -> float:
    """||s - h||, 0 where a device agrees with its neighbours. Without BLAS, whose threads take longer to begin than the
    sum of a small model's squares does."""
    return length(choco.s - choco.h)


def length(vector: npt.NDArray[np.float64]) -> float:
    """Of a vector that nobody else needs."""
    vector *= vector
    return float(np.sqrt(np.sum(vector)))


def bounded(vector: Vector) -> bool:
    """Whether all values are finite, and small enough to be summed."""
    return bool(np.abs(vector).max(initial=0.0) <= LARGEST)


def estimate(node: Node) -> float:
    return 0.0 if node.choco is None else apart(node.choco)


def _sum(
    h: npt.NDArray[np.float64], copies: Mapping[str, npt.NDArray[np.float64]], membership: Membership
) -> npt.NDArray[np.float64]:
    names = sorted(copies)
    weights = {i: membership.weights[name] for i, name in enumerate(names)}
    return rebuilt(h, membership.own_weight, {i: copies[name] for i, name in enumerate(names)}, weights)


def _compressor(node: Node, shape: Shape) -> Compressor:
    assert node.membership is not None
    return Compressor(parse_codec(node.membership.codec), shape.layout, shape.shapes)


def _seed(shape: Shape, epoch: int, number: int) -> int:
    return zlib.crc32(f"{shape.device}/{epoch}/{number}".encode())
