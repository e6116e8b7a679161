"""What the coordinator does for a fleet without a hub, as a table without clocks and sockets: who is in an epoch, with
which neighbours and weights, and when the next one begins.

    a device comes       it is in the next epoch, a newcomer where it has no model of this fleet's
    a device leaves      the next epoch is without it
    nothing is heard     for `dead_after_s`: the next epoch is without it, and begins at once

An epoch follows when every member has begun the one before, so that whoever comes and goes together is one change; only
a member that is lost breaks into it. Where all are there, it begins after an exchange a few numbers ahead of the
foremost, which all members complete: nothing of the network's mean is lost. Where one is lost, nobody can wait for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from protocol.gossip import Algorithm, Effort, Membership, Neighbour, Standing
from sparse.gossip import Graph, consensus, metropolis_hastings, parse_edges, parse_topology
from sparse.gossip.graph import spanning_tree, subtrees

# Numbers between the foremost report and the end of an epoch: how far a fleet may come while it is being told.
AHEAD = 5


@dataclass(frozen=True, slots=True)
class GossipSettings:
    """`[gossip]` of coordinator.toml. topology: a name of sparse.gossip, or `links`: those of the file's text.

    algorithm: of `relay` the neighbours are those of a spanning tree of the topology, and an exchange waits at most
    patience_s for them. gamma: of CHOCO, already tuned. target: of consensus control, a share of the largest distance,
    in the first `first_phase` numbers; 1 leaves all as it is.
    """

    topology: str = "ring"
    links: str = ""
    codec: str = "all/sign"
    gamma: float = 0.5
    local_steps: int = 1
    gossip_rounds: int = 1
    minimum: int = 2
    dead_after_s: float = 300.0
    target: float = 1.0
    first_phase: int = 0
    seed: int = 0
    algorithm: Algorithm = "choco"
    patience_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of a device.

    epoch, number, estimate: that it last reported of the epoch in force, 0 before. gone: it has said goodbye. model: it
    has one of this fleet's epochs. again: it had one in this epoch, and has lost it.
    """

    heard_s: float
    epoch: int = 0
    number: int = 0
    estimate: float = 0.0
    gone: bool = False
    model: bool = False
    again: bool = False


@dataclass(frozen=True, slots=True)
class Council:
    """What is kept. members: of the epoch in force, told: what each of them was told; devices: all that were heard of
    and are not given up. effort: of consensus control, adjusted for this number last."""

    run: str
    epoch: int = 0
    members: tuple[str, ...] = ()
    told: Mapping[str, Membership] = field(default_factory=dict)
    devices: Mapping[str, Member] = field(default_factory=dict)
    effort: consensus.Effort | None = None
    adjusted: int = 0


@dataclass(frozen=True, slots=True)
class Told:
    """What is due: memberships by device, which the broker's access follows, and a new effort for all members."""

    memberships: Mapping[str, Membership] = field(default_factory=dict)
    effort: Effort | None = None


def here(council: Council, device: str, now: float, *, model: bool) -> Council:
    """A device says that it is there. model: it has one of this fleet's epochs, so that it is no newcomer."""
    known = council.devices.get(device, Member(now))
    began = device in council.members and known.epoch == council.epoch
    again = known.again or (began and not model)
    return _with(council, device, replace(known, heard_s=now, gone=False, model=model, again=again))


def left(council: Council, device: str) -> Council:
    """A device says goodbye. One that the broker has lost may come back: its silence counts, nothing else."""
    known = council.devices.get(device)
    return council if known is None else _with(council, device, replace(known, gone=True))


def unheard(council: Council, device: str) -> Membership | None:
    """What a member was told and has not begun; to be said again when it is heard."""
    known = council.devices.get(device)
    begun = known is None or device not in council.members or known.epoch == council.epoch
    return None if begun else council.told[device]


def stands(council: Council, device: str, said: Standing, now: float) -> Council:
    """A report; of an epoch that the device is not in it says only that it is there."""
    known = council.devices.get(device, Member(now))
    known = replace(known, heard_s=now, gone=False, model=known.model or said.epoch > 0)
    if said.epoch == council.epoch and device in council.members:
        known = replace(known, epoch=said.epoch, number=max(said.number, 0), estimate=said.estimate)
    return _with(council, device, known)


def due(council: Council, settings: GossipSettings, now: float) -> tuple[Council, Told]:
    """The next council, and what has to be said; the same council where nothing has."""
    dead = [d for d, m in council.devices.items() if now - m.heard_s >= settings.dead_after_s]
    alive = {device: member for device, member in council.devices.items() if device not in dead}
    wanted = sorted(device for device, member in alive.items() if not member.gone)
    lost = [device for device in council.members if device not in wanted or alive[device].again]
    settled = all(alive[d].epoch == council.epoch for d in council.members if d in alive)
    changed = tuple(wanted) != council.members or bool(lost)
    if len(wanted) >= settings.minimum and changed and (lost or settled):
        return _next(replace(council, devices=alive), settings, tuple(wanted), at_once=bool(lost))
    return _adjusted(replace(council, devices=alive) if dead else council, settings)


def access(council: Council) -> dict[str, tuple[str, ...]]:
    """Who may hear whom: each member's neighbours, by name."""
    return {device: tuple(n.device for n in said.neighbours) for device, said in council.told.items()}


def mean_distance(council: Council) -> float | None:
    """Of the members' last estimates in this epoch; None before any."""
    found = [m.estimate for d, m in council.devices.items() if d in council.members and m.number > 0]
    return float(np.mean(found)) if found else None


def graph_of_fleet(settings: GossipSettings, names: tuple[str, ...], epoch: int) -> Graph:
    """Of relay a tree. Raises ValueError where these devices do not make such a topology."""
    if settings.links:
        graph = parse_edges(settings.links, names)
    else:
        graph = parse_topology(settings.topology, len(names), np.random.default_rng([settings.seed, epoch]))
    return spanning_tree(graph) if settings.algorithm == "relay" else graph


def _next(council: Council, settings: GossipSettings, names: tuple[str, ...], *, at_once: bool) -> tuple[Council, Told]:
    epoch = council.epoch + 1
    graph = graph_of_fleet(settings, names, epoch)
    weights = metropolis_hastings(graph)
    # What lies behind a link is told of trees alone.
    behind = subtrees(graph) if settings.algorithm == "relay" else {}
    foremost = max((council.devices[d].number for d in council.members if d in council.devices), default=0)
    after = 0 if at_once or not council.epoch else foremost + AHEAD
    new = {name: not council.devices[name].model for name in names}
    effort = Effort(settings.local_steps, settings.gossip_rounds)
    told = {
        name: Membership(
            council.run,
            epoch,
            tuple(
                Neighbour(names[j], float(weights[i, j]), new[names[j]], subtree=behind.get((i, j)))
                for j in graph.neighbours[i]
            ),
            settings.codec,
            settings.gamma,
            after,
            new[name],
            effort,
            algorithm=settings.algorithm,
            patience_s=settings.patience_s,
        )
        for i, name in enumerate(names)
    }
    devices = {
        name: replace(member, epoch=0, number=0, again=False) if name in told else member
        for name, member in council.devices.items()
    }
    following = replace(council, epoch=epoch, members=names, told=told, devices=devices, adjusted=0)
    return following, Told(told)


def _adjusted(council: Council, settings: GossipSettings) -> tuple[Council, Told]:
    """Consensus control, once a number that all members have completed."""
    if settings.target >= 1.0 or not council.members:
        return council, Told()
    control = consensus.Control(settings.target, settings.first_phase, settings.gossip_rounds, settings.local_steps)
    numbers = [council.devices[d].number for d in council.members if d in council.devices]
    least = min(numbers, default=0)
    effort = council.effort or consensus.begin(control)
    if least <= council.adjusted:
        return council, Told()
    estimates = [council.devices[d].estimate for d in council.members if d in council.devices]
    following = consensus.adjust(control, effort, least, estimates)
    same = (following.gossip_rounds, following.local_steps) == (effort.gossip_rounds, effort.local_steps)
    council = replace(council, effort=following, adjusted=least)
    return council, Told() if same else Told(effort=Effort(following.local_steps, following.gossip_rounds))


def _with(council: Council, device: str, member: Member) -> Council:
    return replace(council, devices={**council.devices, device: member})
