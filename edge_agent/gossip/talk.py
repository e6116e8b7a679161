"""Between the node and the wire: payloads in parts and back, whom to ask again and when, and the node kept first."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from edge_agent.gossip import node as table
from edge_agent.gossip.node import Ask, Completed, Decision, Node, Publish, Refused, Shape, Train, Vector, waits_for
from protocol.failpoints import reached
from protocol.gossip import Collected, Effort, Membership, Part, Standing, Want, parts
from sparse.codecs import max_payload_bytes, parse_codec
from sparse.codecs.spec import DENSE

# Longer than a round of small models over slow links; each time that nothing comes, twice as long.
ASK_AFTER_S = 5.0
LONGEST_ASK_S = 60.0
# Several neighbours that miss the same payload ask at about the same time.
AGAIN_AFTER_S = 1.0


class Kept(Protocol):
    """What holds a node over restarts."""

    def keep(self, node: Node) -> None:
        """Durable when it returns."""


class Voice(Protocol):
    """How this device is heard. False where there is no connection: it is said again when asked for."""

    def publish(self, part: Part) -> bool:
        """To all neighbours."""

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
    _said: dict[tuple[int, int, tuple[int, ...]], float] = field(default_factory=dict)
    _ask_at: float | None = None
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
        membership = self.node.membership
        if isinstance(said, Want):
            # Who was a neighbour in the epoch before may still miss its last payload; the broker knows who may ask.
            self._give(table.Wanted(said.epoch, said.number, said.places), now)
            return
        if membership is None or sender not in membership.weights or said.epoch != membership.epoch:
            return
        if not 0 <= said.number - self.node.number <= 1 or (sender, said.number) in self.node.heard:
            return
        if said.size > self._most_bytes(said.number):
            self._count(sender, "size")
            return
        collected = self._collected.setdefault((sender, said.number), Collected.begun(said))
        if collected.digest != said.digest:
            # Of two payloads in one name, the newer: its sender may have begun again.
            collected = self._collected[sender, said.number] = Collected.begun(said)
        payload = collected.add(said)
        if payload is not None:
            del self._collected[sender, said.number]
            self._give(table.Heard(sender, said.epoch, said.number, payload), now)

    def advance(self, now: float) -> float:
        """Does what is due; returns how long nothing will be."""
        if self._ask_at is None:
            return LONGEST_ASK_S
        if now >= self._ask_at:
            self._patience = min(LONGEST_ASK_S, 2 * self._patience)
            self._ask_at = now + self._patience
            self._give(table.Asked(), now)
            if self.node.membership is not None:
                self.report()
        return max(0.0, (self._ask_at or now) - now)

    def _give(self, event: table.Event, now: float) -> None:
        before = self.node
        node, decisions = table.step(before, event, self.shape)
        # What was heard is not kept, so hearing alone is no reason to write. A disk that takes nothing changes nothing.
        if _worth(before) != _worth(node):
            self.kept.keep(node)
        self.node = node
        if _worth(before) != _worth(node):
            self._forget()
            self._patience = ASK_AFTER_S
        for decision in decisions:
            self._carry_out(decision, now)
        if not waits_for(self.node):
            self._ask_at = None
        elif self._ask_at is None or _worth(before) != _worth(self.node):
            self._ask_at = now + self._patience

    def _carry_out(self, decision: Decision, now: float) -> None:
        match decision:
            case Train():
                self.train(decision)
            case Publish(epoch, number, payload, places):
                said = self._said.get((epoch, number, places))
                if said is None or now - said >= AGAIN_AFTER_S:
                    # What found no connection was not said.
                    if all(self.voice.publish(part) for part in parts(epoch, number, payload, places)):
                        self._said[epoch, number, places] = now
                    reached("agent.gossip-said")
            case Ask(neighbour, epoch, number):
                begun = self._collected.get((neighbour, number))
                self.voice.ask(neighbour, Want(epoch, number, begun.missing if begun else ()))
            case Completed(estimate=estimate):
                self.completed(decision)
                self.voice.report(Standing(decision.epoch, decision.number, estimate))
            case Refused(sender, reason):
                self._count(sender, reason)

    def report(self) -> bool:
        """Says where this device stands to the coordinator."""
        return self.voice.report(self.standing())

    def standing(self) -> Standing:
        """Epoch, exchanges of it that are completed, ||s - h|| after the last, and whom it waits for."""
        choco = self.node.choco
        estimate = 0.0 if choco is None else float(np.linalg.norm(choco.s - choco.h))
        return Standing(table.node_epoch(self.node), max(0, self.node.number - 1), estimate, waits_for(self.node))

    def _most_bytes(self, number: int) -> int:
        assert self.node.membership is not None
        spec = DENSE if number == 0 else parse_codec(self.node.membership.codec)
        return max_payload_bytes(len(self.node.x), spec, shapes=self.shape.shapes)

    def _count(self, sender: str, reason: str) -> None:
        self.refused[f"{sender} {reason}"] = self.refused.get(f"{sender} {reason}", 0) + 1

    def _forget(self) -> None:
        """Parts and answers of numbers that are over."""
        number, epoch = self.node.number, table.node_epoch(self.node)
        near = set() if self.node.membership is None else set(self.node.membership.weights)
        self._collected = {k: c for k, c in self._collected.items() if k[0] in near and 0 <= k[1] - number <= 1}
        self._said = {k: at for k, at in self._said.items() if k[0] >= epoch - 1 and k[1] >= number - 2}


def _worth(node: Node) -> tuple[object, ...]:
    """What is written down of a node, as far as it tells one from the next."""
    newest = max(node.payloads, default=None)
    following = None if node.next is None else (node.next.epoch, node.next.after)
    return (node.phase, table.node_epoch(node), node.number, newest, following, node.effort)
