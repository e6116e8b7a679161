"""An agent's part in a fleet without a hub: its node on the disk, what it hears and is told, and the legs of training
between exchanges, up to the exchange after which its own model is the task's update.

    task with `until`, ready     the node goes on: a leg, its difference said, the neighbours' heard, the next leg
    exchange `until` completed   the device's own model is measured and packed, as its difference to the task's model
    no task in hand              nothing is trained; neighbours are answered, heard, and told what they miss

A device is told of its first neighbours when it likes the coordinator to; what is said before it has a task waits for
one, since only that says what a model is made of.
"""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edge_agent import job as jobs
from edge_agent.assets import Assets
from edge_agent.gossip import carry as carries
from edge_agent.gossip import node as table
from edge_agent.gossip.carry import Carry
from edge_agent.gossip.ear import EARLY, Ear
from edge_agent.gossip.node import Completed, Node, Shape, Train, Vector
from edge_agent.gossip.store import NodeStore
from edge_agent.gossip.talk import Talk
from edge_agent.gossip.wire import Wire
from edge_agent.link import Link
from edge_agent.momentum import settings_of
from edge_agent.status import MOST_NAMED, Gossip
from edge_agent.store import AgentStore
from edge_agent.trainer import Finished, Leg, News, Ready
from edge_agent.training import Trained
from edge_agent.trusted import Trusted
from protocol.errors import ConfigurationError, Rejection
from protocol.gossip import Effort, Membership, Part, Standing
from protocol.layout import Layout, layout_of, put, take
from protocol.messages import Task
from protocol.topics import Topics
from protocol.transport import Incoming
from sparse.codecs import parse_codec

log = logging.getLogger("edge-agent")

NEVER = float("inf")
# A neighbour's difference that came twice is no news, and one that came before the membership is asked for again.
_QUIET = frozenset({"replay", EARLY})


@dataclass(frozen=True, slots=True)
class _Hand:
    """The task in hand, ready to be trained. base: float32[total], its model."""

    task: Task
    ready: Ready
    layout: Layout
    base: Vector


class Gossiping:
    """Of one agent. again: has the trainer take a leg of the task in hand. Calls come from the agent's thread."""

    def __init__(
        self,
        device: str,
        store: AgentStore,
        link: Link,
        topics: Topics,
        assets: Assets,
        again: Callable[[Leg], None],
        trusted: Trusted | None = None,
    ) -> None:
        self._assets, self._again = assets, again
        self._device, self._store = device, NodeStore(store.database)
        self._wire = Wire(link, topics, device, Ear(lambda: trusted is not None and trusted.ring is not None))
        self._carry: Carry | None = None
        self._talk: Talk | None = None
        self._hand: _Hand | None = None
        # What it was told before it could heed it.
        self._told: Membership | None = None
        self._due: Train | None = None
        # The leg under way, and the momentum that it began with.
        self._leg: tuple[Train | None, Leg] | None = None
        self._deaf = ""
        self.refused: dict[str, int] = {}
        self.at = NEVER
        self._find()

    def _find(self) -> None:
        """Takes up what is on the disk."""
        kept = self._store.load_carry()
        carry = None if kept is None else carries.unpack_carry(kept)
        if kept is not None and carry is None:
            log.error("the state of gossip is let go: it was altered on this disk; this device begins as a newcomer")
        if carry is None:
            return
        self._store.d = carry.d
        node = self._store.load()
        if node is not None:
            self._carry, self._wire.ear.keys = carry, carry.keys
            self._talk = self._made(carry, node, node.x)

    def _made(self, carry: Carry, node: Node, start: Vector) -> Talk:
        shape = Shape(self._device, _layout_in(carry), carry.shapes, start)
        return Talk(shape, node, self._store, self._wire, self._take_due, self._completed)

    # What arrives

    def connected(self, refused: tuple[str, ...], now: float) -> None:
        """What was said into the void is said again. refused: what the broker does not let this device hear."""
        self._deaf = "its broker refuses it what neighbours say" if refused else ""
        if refused and (self._talk is not None or self._told is not None):
            log.warning("the broker refused the subscription to %s: no neighbour is heard", ", ".join(refused))
        if self._talk is not None:
            self._talk.start(now)

    def welcomed(self, run: str) -> None:
        """The coordinator hears where this device stands in its run."""
        if self._talk is None or self._carry is None:
            return
        if self._carry.run == run:
            self._talk.report()
        else:
            # It has no model of this run.
            self._wire.report(Standing(0, 0, 0.0))

    def hear(self, message: Incoming, now: float) -> Rejection | bool:
        """Whether a message is of a neighbour's, or why it is not heeded."""
        said = self._wire.read(message)
        if said is None:
            return False
        if isinstance(said, Rejection):
            self.refused[said.reason] = self.refused.get(said.reason, 0) + 1
            return said.reason in _QUIET or said
        if self._talk is not None and not (isinstance(said[1], Part) and self._is_beyond(said[1])):
            self._talk.heard(*said, now)
        return True

    def _is_beyond(self, said: Part) -> bool:
        """Whether a sum names an exchange that no neighbour can have come to: beyond the one after which the task in
        hand has all of them wait, or the next. Whoever hears of one takes it up (relay_node.py)."""
        assert self._talk is not None
        node, hand = self._talk.node, self._hand
        if node.membership is None or node.membership.algorithm != "relay":
            return False
        until = 0 if hand is None or hand.task.until is None else hand.task.until - node.membership.begun
        return said.number > max(until, node.number + 1)

    def told(self, said: Membership | Effort, now: float) -> None:
        """What the coordinator says. A membership that cannot be heeded yet waits for a task."""
        if isinstance(said, Membership) and not _is_known(said.codec):
            log.error("epoch=%d is not begun: codec=%s is not known here; upgrade this agent", said.epoch, said.codec)
            return
        if isinstance(said, Membership) and not self._can_heed(said):
            if self._told is None or self._told.run != said.run or self._told.epoch <= said.epoch:
                self._told = said
            return
        if self._talk is None or self._carry is None:
            return
        if isinstance(said, Membership) and self._wire.ear.learn(said):
            self._keep(replace(self._carry, keys=self._wire.ear.keys))
            self._store.keep(self._talk.node)
        before = table.node_epoch(self._talk.node)
        self._talk.told(said, now)
        if isinstance(said, Membership):
            # That it was heard; without a task in hand there would be no other word of it.
            self._talk.report()
        epoch = table.node_epoch(self._talk.node)
        if epoch != before:
            log.info(
                "gossip epoch=%d neighbours=%d", epoch, len(said.neighbours) if isinstance(said, Membership) else 0
            )

    def _can_heed(self, said: Membership) -> bool:
        if self._carry is None or self._carry.run != said.run:
            return False
        # The common start is that of the task in hand.
        alone = said.newcomer and all(neighbour.newcomer for neighbour in said.neighbours)
        return self._hand is not None or not alone

    # What is due

    def advance(self, job: jobs.Job, ready: Ready | None, now: float) -> jobs.Event | None:
        """Says again what is due, and has the task in hand go on; its end, where it comes to one. ready: what the
        trainer said of it."""
        self.at = NEVER if self._talk is None else now + self._talk.advance(now)
        if job.phase != "training" or job.task is None or job.task.until is None or ready is None:
            # Also what the trainer was told: it let go of that too.
            self._hand = None
            return None
        if self._hand is None or self._hand.ready is not ready:
            try:
                self._hand, self._leg = self._opened(job.task, ready), None
            except ConfigurationError as error:
                return jobs.Stopped("failed", error.reason, str(error))
            self._take_up(self._hand, now)
        return self._go_on(self._hand, now)

    def pass_on(self, task: Task, news: News, now: float) -> News | jobs.Event | None:
        """What the trainer says, but for legs that are done: instead of these the task's end, what its update is made
        of, or nothing."""
        return self._trained(news, now) if isinstance(news, Finished) and task.until is not None else news

    def _trained(self, finished: Finished, now: float) -> jobs.Event | Finished | None:
        (due, leg), hand = self._leg or (None, None), self._hand
        self._leg = None
        if leg is None or hand is None or self._talk is None or self._carry is None:
            return None
        if due is None:
            return self._collected(hand, finished)
        node, result = self._talk.node, finished.trained
        if node.phase != "training" or (due.epoch, due.number) != (table.node_epoch(node), node.number):
            # Its epoch was over before it was.
            return None
        y = take(result.model, hand.layout.parameters).astype(np.float32)
        if not table.bounded(y):
            why = f"exchange {due.number}: the model has values that are not finite, or above {table.LARGEST:g}"
            return jobs.Stopped("failed", "diverged", why)
        own, settings = take(result.model, hand.layout.buffers), settings_of(hand.task.optimizer)
        before = self._carry
        self._keep(carries.trained(before, node, hand.task, settings, leg.momentum, result, own))
        try:
            self._talk.trained(due.epoch, due.number, y, now)
        except ValueError as error:
            # Of finite models, but of a difference that is none.
            self._keep(before)
            return jobs.Stopped("failed", "diverged", f"exchange {due.number}: {error}")
        except BaseException:
            # The disk took nothing: what was carried before is what there is.
            self._keep(before)
            raise
        return self._go_on(hand, now)

    def _opened(self, task: Task, ready: Ready) -> _Hand:
        manifest = self._assets.manifest(task)
        layout = layout_of(manifest, self._assets.variant_of(task))
        return _Hand(task, ready, layout, self._assets.model(task, manifest))

    def _take_up(self, hand: _Hand, now: float) -> None:
        """A node for this task's model; the one that there is, if it is of this run and of such models."""
        layout, start = hand.layout, take(hand.base, hand.layout.parameters).astype(np.float32)
        old = self._carry
        if self._talk is not None and old is not None and (old.run, old.layout) == (hand.task.run, layout.digest):
            self._talk.shape = replace(self._talk.shape, start=start)
        else:
            if old is not None:
                log.info("gossip begins anew: run=%s layout=%s", hand.task.run, layout.digest.hex())
            buffers = take(hand.base, layout.buffers).astype(np.float32)
            carry = Carry(hand.task.run, layout.digest, layout.shapes, buffers)
            self._store.forget()
            self._wire.ear = Ear(self._wire.ear.is_keyed)
            self._store.d, self._due = carry.d, None
            self._keep(carry)
            self._talk = self._made(carry, table.idle(start), start)
        told = self._told
        if told is not None and self._can_heed(told):
            self._told = None
            self.told(told, now)
        if self._talk.node.membership is None:
            log.info("task=%s waits for its neighbours: no membership yet", hand.task.name)
        self._talk.report()

    def _go_on(self, hand: _Hand, now: float) -> jobs.Event | None:
        """The next leg, if one is due; exchanges without a training need none."""
        assert self._talk is not None
        assert hand.task.until is not None
        while self._leg is None:
            node, due = self._talk.node, self._due
            if node.membership is None or node.phase == "gathering":
                # Of the epoch that it begins it has no model yet.
                return None
            if position(node) >= hand.task.until:
                self._set_out(hand, None, own_model(node))
                return None
            if due is None or node.phase != "training" or (due.epoch, due.number) != (_epoch(node), node.number):
                return None
            if due.steps:
                self._set_out(hand, due, due.x)
                return None
            self._talk.trained(due.epoch, due.number, due.x, now)
        return None

    def _set_out(self, hand: _Hand, due: Train | None, x: Vector) -> None:
        """A leg from x; without anything due to have the device's own model measured."""
        assert self._carry is not None
        assert self._talk is not None
        model = hand.base.copy()
        put(model, hand.layout.parameters, x)
        put(model, hand.layout.buffers, self._carry.buffers)
        if due is None:
            leg = Leg(0, 0, model)
        else:
            given = carries.momentum(self._carry, self._talk.node, settings_of(hand.task.optimizer))
            leg = Leg(due.steps, seed_of(hand.task, due.epoch, due.number), model, given)
        self._leg = due, leg
        self._again(leg)

    def _collected(self, hand: _Hand, finished: Finished) -> Finished:
        """What the task's update is made of: this device's own model."""
        assert self._carry is not None
        tally = self._carry.of(hand.task)
        loss = tally.losses / tally.steps if tally.steps else 0.0
        log.info("task=%s exchange %d is completed: own model loss=%.4f", hand.task.name, hand.task.until, loss)
        model = finished.trained.model
        return replace(finished, trained=Trained(model, loss, tally.steps, tally.seconds))

    def _keep(self, carry: Carry) -> None:
        """What the next transaction writes beside the node."""
        self._carry, self._store.carry = carry, carries.pack_carry(carry)

    def _take_due(self, due: Train) -> None:
        self._due = due

    def _completed(self, done: Completed) -> None:
        log.debug("exchange epoch=%d number=%d estimate=%g", done.epoch, done.number, done.estimate)

    def state(self) -> Gossip | None:
        """Where it stands, for people; None of a device that has nothing to do with gossip."""
        if self._talk is None:
            return None if self._told is None else Gossip(why="it has no task yet")
        said, node = self._talk.standing(), self._talk.node
        refused = sum(n for reason, n in self.refused.items() if reason not in _QUIET)
        refused += sum(self._talk.refused.values())
        if node.membership is None:
            return Gossip(why="it was told of no neighbours yet", refused=refused)
        idle = self._hand is None and node.phase == "training"
        waits_for = said.waits_for[:MOST_NAMED]
        why = "no task in hand" if idle else self._deaf
        return Gossip(said.epoch, said.number, position(node), said.estimate, waits_for, why, refused)


def position(node: Node) -> int:
    """How many exchanges of the run a node has completed."""
    return 0 if node.membership is None else node.membership.begun + max(0, node.number - 1)


def _layout_in(carry: Carry) -> bytes:
    """What payloads say that they are of, 8 bytes: the layout and the run. Epochs begin anew with each run, so what a
    broker kept of the one before could otherwise pass for this one's."""
    return hashlib.sha256(carry.layout + carry.run.encode()).digest()[: len(carry.layout)]


def own_model(node: Node) -> Vector:
    """float32[d]: the model after the last exchange that is completed."""
    return node.before if node.phase == "waiting" and node.before is not None else node.x


def seed_of(task: Task, epoch: int, number: int) -> int:
    """Of a leg: 63 bits that follow from the task's seed and its place in the run."""
    return int.from_bytes(hashlib.sha256(f"{task.seed}/{epoch}/{number}".encode()).digest()[:8]) >> 1


def _is_known(codec: str) -> bool:
    try:
        parse_codec(codec)
    except ValueError:
        return False
    return True


def _epoch(node: Node) -> int:
    return table.node_epoch(node)
