"""Between the node and the wire: payloads in parts and back, whom to ask again and when, and the node kept first."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from edge_agent.gossip import node as table
from edge_agent.gossip.node import Ask, Completed, Decision, Node, Publish, Refused, Shape, Train, Vector
from edge_agent.gossip.tables import Table, table_of
from protocol.failpoints import reached
from protocol.gossip import PART_BYTES, Collected, Effort, Membership, Part, Standing, Want, parts

log = logging.getLogger("edge-agent")

# Longer than a round of small models over slow links; each time that nothing comes, twice as long.
ASK_AFTER_S = 5.0
# What neighbours said when an epoch began may have come before this device had heard of it.
FIRST_ASK_S = 1.0
LONGEST_ASK_S = 60.0
# Several neighbours that miss the same payload ask at about the same time; nor may one that asks all the time have this
# device speak all the time.
AGAIN_AFTER_S = 1.0
# Payloads of one neighbour that are under way: of relay it may name any number, and memory is not for it to fill.
MOST_BEGUN = 2


class Kept(Protocol):
    """What holds a node over restarts."""

    def keep(self, node: Node) -> None:
        """Durable when it returns."""


class Voice(Protocol):
    """How this device is heard. False where there is no connection: it is said again when asked for."""

    def publish(self, part: Part) -> bool:
        """To all neighbours."""

    def tell(self, neighbour: str, part: Part) -> bool:
        """To one neighbour, what is for it alone."""

    def ask(self, neighbour: str, want: Want) -> bool:
        """To one neighbour."""

    def report(self, standing: Standing) -> bool:
        """To the coordinator."""


@dataclass
class Talk:
    """One device's part in gossip. train: begins what is due and comes back with `trained`, not from within.

    completed: what came of each exchange, for momentum and for whoever evaluates.
    """

    shape: Shape
    node: Node
    kept: Kept
    voice: Voice
    train: Callable[[Train], None]
    completed: Callable[[Completed], None] = lambda _: None
    refused: dict[str, int] = field(default_factory=dict)
    _collected: dict[tuple[str, int], Collected] = field(default_factory=dict)
    # When each part was said last, by its place.
    _said: dict[tuple[str | None, int, int], dict[int, float]] = field(default_factory=dict)
    _ask_at: float | None = None
    _over_at: float = 0.0
    _patience: float = ASK_AFTER_S

    def start(self, now: float) -> None:
        """After a restart: what was decided last is done again."""
        self._give(table.Restarted(), now)

    def told(self, said: Membership | Effort, now: float) -> None:
        """What the coordinator says."""
        self._give(table.Joined(said) if isinstance(said, Membership) else table.Adjusted(said), now)

    def trained(self, epoch: int, number: int, y: Vector, now: float) -> None:
        self._give(table.Trained(epoch, number, y), now)

    def heard(self, sender: str, said: Part | Want, now: float) -> None:
        """What a device says; what is of no neighbour, or over what a payload may be, is counted and let go."""
        if isinstance(said, Want):
            # Who was a neighbour in the epoch before may still miss its last payload; the broker knows who may ask.
            self._give(table.Wanted(sender, said.epoch, said.number, said.places), now)
            return
        if not self._table.takes(self.node, sender, said.epoch, said.number):
            return
        if said.size > self._table.most_bytes(self.node, said.number, self.shape):
            self._count(sender, "size")
            return
        payload = self._begun(sender, said).add(said)
        if payload is not None:
            self._collected.pop((sender, said.number), None)
            self._give(table.Heard(sender, said.epoch, said.number, payload), now)

    def _begun(self, sender: str, said: Part) -> Collected:
        """What a part belongs to. Of two payloads in one name the newer counts: its sender may have begun again."""
        known = self._collected.get((sender, said.number))
        if known is not None and (known.size, known.digest) == (said.size, said.digest):
            return known
        begun = self._collected[sender, said.number] = Collected.begun(said)
        for number in sorted(number for of, number in self._collected if of == sender)[:-MOST_BEGUN]:
            del self._collected[sender, number]
        return begun

    def advance(self, now: float) -> float:
        """Does what is due; returns how long nothing will be."""
        if self._ask_at is None:
            return LONGEST_ASK_S
        if now >= self._ask_at:
            self._patience = min(LONGEST_ASK_S, 2 * self._patience)
            over = now >= self._over_at
            self._ask_at = self._next_ask(now)
            self._give(table.Asked(over), now)
            if self.node.membership is not None:
                self.report()
        return max(0.0, (self._ask_at or now) - now)

    def _give(self, event: table.Event, now: float) -> None:
        before = self.node
        begins = event.membership if isinstance(event, table.Joined) else before.membership
        node, decisions = table_of(begins).step(before, event, self.shape)
        # What was heard is not kept, so hearing alone is no reason to write. A disk that takes nothing changes nothing.
        if _worth(before) != _worth(node) and not (self._table.in_step and _only_went_on(before, node)):
            self.kept.keep(node)
        self.node = node
        if _worth(before) != _worth(node):
            self._forget()
            gathers = self._table.in_step and node.phase == "gathering"
            self._patience = FIRST_ASK_S if gathers else ASK_AFTER_S
        for decision in decisions:
            self._carry_out(decision, now)
        if not self._table.waits_for(self.node):
            self._ask_at = None
        elif self._ask_at is None or _worth(before) != _worth(self.node):
            patience_s = 0.0 if self.node.membership is None else self.node.membership.patience_s
            self._over_at = now + patience_s
            self._ask_at = self._next_ask(now)

    def _carry_out(self, decision: Decision, now: float) -> None:
        match decision:
            case Train():
                self.train(decision)
            case Publish():
                self._say(decision, now)
            case Ask(neighbour, epoch, number):
                begun = self._collected.get((neighbour, number))
                self.voice.ask(neighbour, Want(epoch, number, begun.missing if begun else ()))
            case Completed(epoch, number, estimate=estimate):
                self.completed(decision)
                # Who has held this device up is to be given up if that goes on.
                self.voice.report(Standing(epoch, number, estimate, self._table.missed(self.node)))
            case Refused(sender, reason):
                self._count(sender, reason)

    def _next_ask(self, now: float) -> float:
        """Not past the end of the patience that a membership asks for."""
        later = now + self._patience
        return min(later, self._over_at) if now < self._over_at else later

    def _say(self, due: Publish, now: float) -> None:
        count = -(-len(due.payload) // PART_BYTES)
        said = self._said.setdefault((due.to, due.epoch, due.number), {})
        places = [place for place in dict.fromkeys(due.places or range(count)) if place < count]
        new = tuple(place for place in places if place not in said or now - said[place] >= AGAIN_AFTER_S)
        if not new:
            return
        for part in parts(due.epoch, due.number, due.payload, new):
            # What found no connection was not said.
            if not self._tell(due.to, part):
                break
            said[part.place] = now
        reached("agent.gossip-said")

    def _tell(self, to: str | None, part: Part) -> bool:
        return self.voice.publish(part) if to is None else self.voice.tell(to, part)

    def report(self) -> bool:
        """Says where this device stands to the coordinator."""
        return self.voice.report(self.standing())

    def standing(self) -> Standing:
        """Epoch, exchanges of it that are completed, how far from the others after the last, and whom it waits for."""
        estimate, missed = self._table.estimate(self.node), self._table.missed(self.node)
        return Standing(table.node_epoch(self.node), max(0, self.node.number - 1), estimate, missed)

    @property
    def _table(self) -> Table:
        return table_of(self.node.membership)

    def _count(self, sender: str, reason: str) -> None:
        times = self.refused.get(f"{sender} {reason}", 0) + 1
        self.refused[f"{sender} {reason}"] = times
        # An exchange waits for what is refused, so who asks why it stands still must find it: once, twice, 4, 8 times.
        if times & (times - 1) == 0:
            log.warning("gossip: what %s said was refused, %s, times=%d", sender, reason, times)

    def _forget(self) -> None:
        """Parts and answers of numbers that are over."""
        number, epoch = self.node.number, table.node_epoch(self.node)
        self._collected = {k: c for k, c in self._collected.items() if self._table.takes(self.node, k[0], epoch, k[1])}
        self._said = {k: at for k, at in self._said.items() if k[1] >= epoch - 1 and k[2] >= number - 2}


def _only_went_on(before: Node, node: Node) -> bool:
    """Whether all that a step did was to end an exchange."""
    same = before.membership is node.membership and before.next is node.next and before.effort is node.effort
    return same and before.phase in ("gathering", "waiting") and before.payloads is node.payloads


def _worth(node: Node) -> tuple[object, ...]:
    """What is written down of a node, as far as it tells one from the next."""
    newest = max(node.payloads, default=None)
    following = None if node.next is None else (node.next.epoch, node.next.after)
    return (node.phase, table.node_epoch(node), node.number, newest, following, node.effort)
