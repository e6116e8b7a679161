"""What a device of a fleet without a hub decides under RelaySum (sparse/gossip/relay.py), as a table without clocks,
sockets or disks: an exchange that waits for its neighbours, but not for ever.

    phase       it has                                  it waits for                               then
    idle        nothing                                 a membership                               gathering or training
    gathering   a membership; a newcomer, so no model   the bases of its neighbours                training, number 1
    training    x, sums of its neighbours               y of its own training                      waiting, with y
    waiting     y, a sum for each neighbour             a sum of this number or newer of each,     training, number + 1
                                                        or until its patience is over

With all messages in time it is lock-step, and the models are the bits of the rule. Whatever is lost, doubled, overtaken
or late does no lasting harm: sums are absolute, so the newest of a neighbour has all that the lost ones had. Who has
waited for longer than the membership's patience goes on with the newest that it has.

A neighbour may hence be many numbers ahead. Who hears so takes up its number: it has missed exchanges, and nothing that
is not in the newest sum. What was heard is kept with every step, for a sum that is forgotten would count as the model
that the epoch began with.

A new membership is a new epoch on another tree, where nothing that came is true. Each begins it with the model that it
has, which also stands in for all that have not come yet; a newcomer with the mean of what its neighbours began with.
"""

from dataclasses import replace
from typing import assert_never

import numpy as np

from edge_agent.gossip import sums as sums_of
from edge_agent.gossip.node import (
    Adjusted,
    Ask,
    Asked,
    Completed,
    Decision,
    Event,
    Heard,
    Joined,
    Node,
    Publish,
    Refused,
    Restarted,
    Shape,
    Trained,
    Vector,
    Wanted,
    bounded,
    joined,
    length,
    node_epoch,
    train_of,
)
from edge_agent.gossip.sums import COUNT_BYTES, Sums
from protocol.gossip import Membership
from sparse.codecs import PayloadError, max_payload_bytes, parse_codec
from sparse.codecs.spec import DENSE
from sparse.gossip import relay
from sparse.gossip.choco import Compressor


def step(node: Node, event: Event, shape: Shape) -> tuple[Node, list[Decision]]:
    """The next node and what to do; the same node (`is`) where there is nothing to keep."""
    match event:
        case Joined(membership):
            return _joined(node, membership, shape)
        case Trained(epoch, number, y):
            return _trained(node, epoch, number, y, shape)
        case Heard():
            return _heard(node, event, shape)
        case Wanted():
            return node, _again(node, event, shape)
        case Asked(over):
            return _over(node, shape) if over else (node, _asks(node))
        case Restarted():
            return node, _restarted(node)
        case Adjusted(effort):
            return replace(node, effort=effort), []
        case _:
            assert_never(event)


def waits_for(node: Node) -> tuple[str, ...]:
    """The neighbours of whom nothing has come of this number or a newer one; of a newcomer, those without a base."""
    if node.membership is None:
        return ()
    if node.phase == "gathering":
        return tuple(d for d in _based(node.membership) if (d, 0) not in node.heard)
    if node.phase != "waiting" or node.sums is None:
        return ()
    return tuple(d for d in _names(node.membership) if sums_of.newest(node.sums, d) < node.number)


def missed(node: Node) -> tuple[str, ...]:
    """Also, in training, of whom nothing had come when the exchange before was completed without them."""
    if node.phase != "training" or node.membership is None or node.sums is None:
        return waits_for(node)
    return tuple(d for d in _names(node.membership) if sums_of.newest(node.sums, d) < node.number - 1)


def takes(node: Node, sender: str, epoch: int, number: int) -> bool:
    """Whether a payload of this name would count: of a neighbour, and newer than what is held of it."""
    membership = node.membership
    if membership is None or node.sums is None or epoch != membership.epoch or sender not in membership.weights:
        return False
    if number == 0:
        return sender in waits_for(node) and node.phase == "gathering"
    return number > sums_of.newest(node.sums, sender)


def most_bytes(node: Node, number: int, shape: Shape) -> int:
    """That a payload of this number can have."""
    assert node.membership is not None
    if number == 0:
        return max_payload_bytes(len(node.x), DENSE, shapes=shape.shapes)
    return COUNT_BYTES + max_payload_bytes(len(node.x), parse_codec(node.membership.codec), shapes=shape.shapes)


def estimate(node: Node) -> float:
    return 0.0 if node.sums is None else node.sums.estimate


def _joined(node: Node, membership: Membership, shape: Shape) -> tuple[Node, list[Decision]]:
    try:
        relay.check_codec(parse_codec(membership.codec))
    except ValueError:
        return node, [Refused("coordinator", "codec")]
    return joined(node, membership, shape, _begin)


def _begin(node: Node, membership: Membership, shape: Shape) -> tuple[Node, list[Decision]]:
    """The epoch's first node."""
    x = shape.start if membership.newcomer and not _based(membership) else node.x
    node = Node("gathering", x, membership, sums=Sums(x), effort=membership.effort)
    return (node, []) if waits_for(node) else _ready(node, shape)


def _based(membership: Membership) -> tuple[str, ...]:
    """Whose bases a newcomer begins with; nobody's where all begin at the common start."""
    return tuple(n.device for n in membership.neighbours if not n.newcomer) if membership.newcomer else ()


def _ready(node: Node, shape: Shape) -> tuple[Node, list[Decision]]:
    """Training of number 1, from the model that the epoch begins with, which newcomers are told."""
    membership, sums = _epoch(node)
    bases = [node.heard[device, 0] for device in _based(membership) if (device, 0) in node.heard]
    if bases:
        x = np.asarray(np.mean(bases, axis=0, dtype=np.float64), dtype=np.float32)
        node = replace(node, x=x, sums=replace(sums, fill=x), heard={})
    new = [] if membership.newcomer else [n.device for n in membership.neighbours if n.newcomer]
    said: list[Decision] = [_base(node, device, shape) for device in new]
    node, decisions = _next(node)
    return node, [*said, *decisions]


def _next(node: Node) -> tuple[Node, list[Decision]]:
    """Training for the next exchange: the one after this, or the foremost that is known of."""
    membership, sums = _epoch(node)
    foremost = max((sums_of.newest(sums, device) for device in _names(membership)), default=0)
    node = replace(node, phase="training", number=max(node.number + 1, foremost), before=node.x)
    return node, [train_of(node)]


def _trained(node: Node, epoch: int, number: int, y: Vector, shape: Shape) -> tuple[Node, list[Decision]]:
    if node.phase != "training" or (epoch, number) != (node_epoch(node), node.number):
        return node, []
    membership, sums = _epoch(node)
    names, compressor = _names(membership), _compressor(membership, shape)
    # Neighbours' sums of the exchange before, though one may have sent that of this exchange already.
    due = relay.messages(sums_of.held_at(sums, names, number - 1), y, number)
    said = {names[place]: sums_of.pack(message, compressor) for place, message in due.items()}
    node = replace(node, phase="waiting", x=y, sums=replace(sums, said=said, number=number))
    node, after = (node, []) if waits_for(node) else _exchanged(node, shape)
    return node, [*(Publish(epoch, number, payload, to=device) for device, payload in said.items()), *after]


def _heard(node: Node, event: Heard, shape: Shape) -> tuple[Node, list[Decision]]:
    if not takes(node, event.sender, event.epoch, event.number):
        return node, []
    membership, sums = _epoch(node)
    subtree = next(n.subtree for n in membership.neighbours if n.device == event.sender) or 1
    try:
        if event.number == 0:
            base = Compressor(DENSE, shape.layout, shape.shapes).decode(event.payload, len(node.x))
            if not bounded(base):
                return node, [Refused(event.sender, "values")]
            node = replace(node, heard={**node.heard, (event.sender, 0): base})
        else:
            compressor = _compressor(membership, shape)
            message = sums_of.unpack(event.payload, event.number, len(node.x), compressor)
            if not 1 <= message.count <= subtree:
                return node, [Refused(event.sender, "count")]
            if not bounded(message.total):
                return node, [Refused(event.sender, "values")]
            node = replace(node, sums=sums_of.taken(sums, event.sender, message))
    except PayloadError as error:
        return node, [Refused(event.sender, error.reason)]
    if waits_for(node) or node.phase == "training":
        return node, []
    return _ready(node, shape) if node.phase == "gathering" else _exchanged(node, shape)


def _exchanged(node: Node, shape: Shape) -> tuple[Node, list[Decision]]:
    """Completes the exchange with what there is."""
    membership, sums = _epoch(node)
    assert node.before is not None
    held = sums_of.held_at(sums, _names(membership), node.number)
    after = relay.average(held, node.x, membership.devices, sums.fill)
    moved = length(after.astype(np.float64) - node.x)
    done = Completed(membership.epoch, node.number, node.before, after, moved)
    node = replace(node, x=after, sums=replace(sums, estimate=moved))
    if node.next is not None and node.number >= node.next.after:
        node, decisions = _begin(node, node.next, shape)
    else:
        node, decisions = _next(node)
    return node, [done, *decisions]


def _over(node: Node, shape: Shape) -> tuple[Node, list[Decision]]:
    """It goes on with what it has; a newcomer needs the base of one neighbour at least. They are asked nevertheless, so
    that what comes late is there in the next exchange."""
    asks = _asks(node)
    if node.phase == "waiting":
        node, decisions = _exchanged(node, shape)
        return node, [*asks, *decisions]
    if node.phase == "gathering" and node.heard:
        node, decisions = _ready(node, shape)
        return node, decisions
    return node, asks


def _base(node: Node, to: str, shape: Shape, places: tuple[int, ...] = ()) -> Publish:
    payload = Compressor(DENSE, shape.layout, shape.shapes).encode(_epoch(node)[1].fill, 0)
    return Publish(node_epoch(node), 0, payload, places, to)


def _again(node: Node, wanted: Wanted, shape: Shape) -> list[Decision]:
    """The newest that there is for who asks: of the number that was asked for, or of a newer one, then whole."""
    sums, neighbour = node.sums, wanted.sender
    if sums is None or wanted.epoch != node_epoch(node) or node.phase == "gathering":
        return []
    if wanted.number == 0:
        near = node.membership is not None and neighbour in node.membership.weights
        return [_base(node, neighbour, shape, wanted.places)] if near else []
    if neighbour not in sums.said or wanted.number > sums.number:
        return []
    places = wanted.places if wanted.number == sums.number else ()
    return [Publish(wanted.epoch, sums.number, sums.said[neighbour], places, neighbour)]


def _asks(node: Node) -> list[Decision]:
    return [Ask(name, node_epoch(node), node.number) for name in waits_for(node)]


def _restarted(node: Node) -> list[Decision]:
    """Whatever was decided last may not have been done."""
    said: list[Decision] = []
    if node.sums is not None:
        said += [Publish(node_epoch(node), node.sums.number, p, to=device) for device, p in node.sums.said.items()]
    if node.phase == "training":
        said.append(train_of(node))
    return [*said, *_asks(node)]


def _epoch(node: Node) -> tuple[Membership, Sums]:
    """What every node has that is not idle."""
    assert node.membership is not None
    assert node.sums is not None
    return node.membership, node.sums


def _names(membership: Membership) -> list[str]:
    return sorted(membership.weights)


def _compressor(membership: Membership, shape: Shape) -> Compressor:
    return Compressor(parse_codec(membership.codec), shape.layout, shape.shapes)
