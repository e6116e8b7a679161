"""What the coordinator does for a fleet without a hub, as a table without clocks and sockets: who is in an epoch, with
which neighbours and weights, and when the next one begins.

    a device comes       it is in the next epoch, a newcomer where it has no model of this run's
    a device leaves      the next epoch is without it, and begins at once
    nothing is heard     for `dead_after_s`: as if it had left

An epoch follows when every member has begun the one before, so that whoever comes and goes together is one change; only
a member that is lost breaks into it. Where all are there, it begins after an exchange a few numbers ahead of the
foremost, which all members complete: nothing of the network's mean is lost. Where one is lost, nobody can wait for it.
"""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from protocol.gossip import Algorithm, Effort, Membership, Neighbour, Standing
from sparse.gossip import Graph, Weights, consensus, metropolis_hastings, parse_edges, parse_topology
from sparse.gossip.graph import reachable, spanning_tree, subtrees

# Numbers between the foremost report and the end of an epoch: how far a fleet may come while it is being told, and at
# its pace so far in as many seconds; more than `MOST_AHEAD` would keep a newcomer waiting.
AHEAD, TELLING_S, MOST_AHEAD = 5, 3.0, 100

# What a device has done, and what it says of it, are so long apart at most.
REPORTING_S = 10.0

# gamma of CHOCO on a graph. Raises ValueError where no value works.
Gamma = Callable[[Weights], float]


def fixed(gamma: float) -> Gamma:
    return lambda _: gamma


@dataclass(frozen=True, slots=True)
class Rules:
    """By which epochs are made, from [gossip] and [training]. links: in place of a topology, the text of a file.

    first: members of the first epoch, minimum: of all later ones. algorithm: of `relay` the neighbours are those of a
    spanning tree of the topology, and an exchange waits at most patience_s for them. target: of consensus control, a
    share of the largest distance, in the first `first_phase` exchanges of the run; 1 leaves all as it is.
    """

    topology: str = "ring"
    links: str = ""
    codec: str = "all/sign"
    gamma: Gamma = field(default_factory=lambda: fixed(0.5))
    local_steps: int = 1
    gossip_rounds: int = 1
    first: int = 2
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

    epoch, number: that it last reported of the epoch in force, 0 before. estimate: of its last exchange before a
    training, whose number `measured` is, 0 before one. gone: it has said goodbye. model: it has one of this run's
    epochs. again: it had one in this epoch, and has lost it. sent: the exchange of the run whose model it sent last.
    """

    heard_s: float
    epoch: int = 0
    number: int = 0
    estimate: float = 0.0
    measured: int = 0
    gone: bool = False
    model: bool = False
    again: bool = False
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Council:
    """What is kept.

    members: of the epoch in force, told: what each of them was told; leaving: the neighbours of the epoch before, while
    not all have begun this one. begun: exchanges of the run before this epoch, before: before the epoch before, in
    which the foremost has come to the exchange `came` of the run. devices: all that were heard of and are not given
    up; models: those that have begun an epoch of this run, given up or not. effort: of consensus control, which looks
    at what comes after the exchange `adjusted` of the run. since_s: when the epoch was told, of this start's clock.
    """

    run: str
    epoch: int = 0
    members: tuple[str, ...] = ()
    told: Mapping[str, Membership] = field(default_factory=dict)
    leaving: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    begun: int = 0
    before: int = 0
    came: int = 0
    devices: Mapping[str, Member] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    effort: consensus.Effort | None = None
    adjusted: int = 0
    since_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Told:
    """What is due: memberships by device, which the broker's access follows, and a new effort for all members."""

    memberships: Mapping[str, Membership] = field(default_factory=dict)
    effort: Effort | None = None


def here(council: Council, device: str, now: float, *, model: bool) -> Council:
    """A device says that it is there. model: it has one of this run's epochs, so that it is no newcomer."""
    known = council.devices.get(device, Member(now))
    began = device in council.members and known.epoch == council.epoch
    again = known.again or (began and not model)
    council = _with(council, device, replace(known, heard_s=now, gone=False, model=model, again=again))
    return council if model else replace(council, models=tuple(d for d in council.models if d != device))


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
    """A report; of an epoch that the device is not in it says only that it is there, and has the model that it had."""
    if said.epoch == 0:
        return here(council, device, now, model=False)
    known = council.devices.get(device, Member(now))
    known = replace(known, heard_s=now, gone=False, model=known.model or device in council.models)
    if said.epoch == council.epoch and device in council.members:
        # What was overtaken on its way is older news.
        number = max(said.number, known.number) if known.epoch == said.epoch else said.number
        known = _measured(council, device, replace(known, epoch=said.epoch, number=number, model=True), said)
        if device not in council.models:
            council = replace(council, models=tuple(sorted((*council.models, device))))
    elif said.epoch < known.epoch == council.epoch and device in council.members:
        # Its disk was put back to an earlier day: what its neighbours wait for it has not, and will not make again.
        known = replace(known, again=True)
    elif said.epoch == council.epoch - 1 and device in council.leaving:
        council = replace(council, came=max(council.came, council.before + said.number))
    return _with(council, device, known)


def anew(council: Council, devices: Collection[str]) -> Council:
    """These wait for each other, and what they wait for will not come: all begin a new epoch, with what they have."""
    again = {d: replace(council.devices[d], again=True) for d in devices if d in council.devices}
    return replace(council, devices={**council.devices, **again})


def asked_of(council: Council, said: Standing, asked: int) -> Standing:
    """A report, with no exchange beyond those of the run that were asked for: who says more would have all others
    begin there. asked: the exchange after which all wait."""
    begun = council.begun if said.epoch == council.epoch else council.before
    return replace(said, number=min(said.number, max(0, asked - begun)))


def due(council: Council, rules: Rules, now: float) -> tuple[Council, Told]:
    """The next council, and what has to be said; the same council where nothing has. Raises ValueError where no epoch
    can be made of the devices that there are."""
    dead = [d for d, m in council.devices.items() if now - m.heard_s >= rules.dead_after_s]
    alive = {device: member for device, member in council.devices.items() if device not in dead}
    wanted = linked(rules, tuple(sorted(device for device, member in alive.items() if not member.gone)))
    lost = [device for device in council.members if device not in wanted or alive[device].again]
    lost += _behind(council, now)
    settled = all(alive[d].epoch == council.epoch for d in council.members if d in alive)
    changed = wanted != council.members or bool(lost)
    enough = len(wanted) >= (rules.minimum if council.epoch else rules.first)
    if enough and changed and (lost or settled):
        return _next(council, alive, rules, wanted, now, at_once=bool(lost))
    if settled and council.leaving:
        council = replace(council, leaving={})
    return _adjusted(replace(council, devices=alive) if dead else council, rules)


def sent(council: Council, device: str, exchange: int) -> Council:
    """A device has sent its model of an exchange of the run, and waits for what comes after that."""
    known = council.devices.get(device)
    return council if known is None else _with(council, device, replace(known, sent=max(known.sent, exchange)))


def access(council: Council) -> dict[str, tuple[str, ...]]:
    """Who may hear whom, by name: each member's neighbours, and those of the epoch before until all have left it."""
    now = {device: {n.device for n in said.neighbours} for device, said in council.told.items()}
    return {d: tuple(sorted(near | set(council.leaving.get(d, ())))) for d, near in now.items()}


def collected(council: Council) -> frozenset[str]:
    """The members that have come as far as the others. Who joins has not, before all have left the epoch before."""
    joining = {device for device in council.members if council.leaving and device not in council.leaving}
    return frozenset(council.members) - joining


def place(council: Council) -> int:
    """Exchanges of the run that the foremost member has completed."""
    begun = any(m.epoch == council.epoch for d, m in council.devices.items() if d in council.members)
    return council.begun + _foremost(council) if begun else council.came


def mean_distance(council: Council) -> float | None:
    """Of the members' last estimates in this epoch; None before any."""
    found = [m.estimate for d, m in council.devices.items() if d in council.members and m.measured > 0]
    return float(np.mean(found)) if found else None


def effort_of(council: Council, rules: Rules) -> Effort:
    """What devices are asked for now."""
    asked = council.effort
    return Effort(rules.local_steps, rules.gossip_rounds) if asked is None else _said(asked)


def linked(rules: Rules, names: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the devices that can be in one epoch: with a file of links, the largest part that hangs together."""
    if not rules.links:
        return names
    return reachable(rules.links, names)


def graph_of_fleet(rules: Rules, names: tuple[str, ...], epoch: int) -> Graph:
    """Of relay a tree. Raises ValueError where these devices do not make such a topology."""
    graph = _graph(rules, names, np.random.default_rng([rules.seed, epoch]))
    return spanning_tree(graph) if rules.algorithm == "relay" else graph


def _graph(rules: Rules, names: tuple[str, ...], rng: np.random.Generator) -> Graph:
    if rules.links:
        return parse_edges(rules.links, names)
    try:
        return parse_topology(rules.topology, len(names), rng)
    except ValueError:
        if rules.topology != "torus":
            raise
        # So many that they make no torus of several rows make one of a single row.
        return parse_topology("ring", len(names), rng)


def _next(
    council: Council,
    alive: Mapping[str, Member],
    rules: Rules,
    names: tuple[str, ...],
    now: float,
    *,
    at_once: bool,
) -> tuple[Council, Told]:
    epoch, foremost = council.epoch + 1, _foremost(council)
    graph = graph_of_fleet(rules, names, epoch)
    weights = metropolis_hastings(graph)
    # What lies behind a link is told of trees alone, and gamma is of CHOCO.
    relay = rules.algorithm == "relay"
    behind, gamma = (subtrees(graph), 1.0) if relay else ({}, rules.gamma(weights))
    after = 0 if at_once or not council.epoch else foremost + _ahead(council, foremost, now)
    came = place(council)
    begun = max(council.begun + after if after else came, *(member.sent for member in alive.values()))
    new = {name: not alive[name].model for name in names}
    told = {
        name: Membership(
            council.run,
            epoch,
            tuple(
                Neighbour(names[j], float(weights[i, j]), new[names[j]], subtree=behind.get((i, j)))
                for j in graph.neighbours[i]
            ),
            rules.codec,
            gamma,
            # Who joins is in no epoch that could end, or in one that is long over.
            after if name in council.members else 0,
            new[name],
            effort_of(council, rules),
            begun,
            rules.algorithm,
            rules.patience_s,
        )
        for i, name in enumerate(names)
    }
    devices = {
        name: replace(member, epoch=0, number=0, measured=0, again=False) if name in told else member
        for name, member in alive.items()
    }
    leaving = {d: tuple(n for n in near if n in told) for d, near in access(council).items() if d in told}
    following = replace(
        council,
        epoch=epoch,
        members=names,
        told=told,
        leaving=leaving,
        begun=begun,
        before=council.begun,
        came=came,
        devices=devices,
        since_s=now,
    )
    return following, Told(told)


def _behind(council: Council, now: float) -> list[str]:
    """Who has come farther than where this epoch says that it begins: its last report came too late to count. It has
    done what the others are still to do, and would never do it again. Of an epoch from before this start, and in its
    first seconds, a report may just be on its way."""
    if not now - council.since_s >= REPORTING_S:
        return []
    begun = {d: m for d, m in council.devices.items() if d in council.members and m.epoch == council.epoch}
    return [device for device, member in begun.items() if member.sent > council.begun + member.number]


def _foremost(council: Council) -> int:
    return max((council.devices[d].number for d in council.members if d in council.devices), default=0)


def _ahead(council: Council, foremost: int, now: float) -> int:
    pace = foremost / (now - council.since_s) if now > council.since_s else 0.0
    return min(MOST_AHEAD, max(AHEAD, math.ceil(TELLING_S * pace)))


def _measured(council: Council, device: str, known: Member, said: Standing) -> Member:
    """With its estimate, if a training follows that exchange: what gossip has left of the distance. Those before it are
    of models on their way to each other, and would have control go up and down between two trainings."""
    effort = council.told[device].effort if council.effort is None else _said(council.effort)
    if said.number < max(1, known.measured) or said.number % effort.gossip_rounds:
        return known
    return replace(known, estimate=said.estimate, measured=said.number)


def _adjusted(council: Council, rules: Rules) -> tuple[Council, Told]:
    """Consensus control: once for each training that all members have gossiped about, and after a change only once they
    have under the new effort. Devices of one epoch may be as many exchanges apart as links; each one's last counts."""
    if rules.target >= 1.0 or not council.members:
        return council, Told()
    control = consensus.Control(rules.target, rules.first_phase, rules.gossip_rounds, rules.local_steps)
    members = [council.devices[d] for d in council.members if d in council.devices]
    least = council.begun + min((member.measured for member in members), default=0)
    if not all(member.measured for member in members) or least <= council.adjusted:
        return council, Told()
    effort = council.effort or consensus.begin(control)
    following = consensus.adjust(control, effort, least, [member.estimate for member in members])
    if _said(following) == _said(effort):
        return replace(council, effort=following, adjusted=least), Told()
    # Who is told between a training and its exchange ends with one exchange too few; the training after that counts.
    settled = place(council) + following.gossip_rounds
    return replace(council, effort=following, adjusted=settled), Told(effort=_said(following))


def _said(effort: consensus.Effort) -> Effort:
    return Effort(effort.local_steps, effort.gossip_rounds)


def _with(council: Council, device: str, member: Member) -> Council:
    return replace(council, devices={**council.devices, device: member})
