"""A fleet without a hub in one process: the real coordinator, and devices that gossip by the agent's own tables and
train by a formula."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from coordinator.gossip_settings import GossipSettings
from edge_agent.gossip import node as table
from edge_agent.gossip.node import Completed, Node, Shape, Train
from edge_agent.gossip.talk import Talk
from edge_agent.gossip.wire import Wire
from edge_agent.link import Link
from protocol.bundle import Bundle
from protocol.gossip import Effort, Membership, Standing
from protocol.layout import layout_of
from protocol.messages import GOSSIP, Body, HeldOut, Offer, Task
from protocol.transport import Event, Incoming, MemoryBroker
from sparse.codecs import encode_update, parse_codec
from tests.coordinator.simulation import TOPICS, FakeAgent, Simulation, make_settings, named, write_bundle

RATE = np.float32(0.1)


class Card:
    """What a device has on its disk."""

    def __init__(self) -> None:
        self.node: Node | None = None

    def keep(self, node: Node) -> None:
        self.node = replace(node, heard={})


class GossipAgent(FakeAgent):
    """Steps towards a place of its own. A collection is sent as any update; then it waits for the next task."""

    def __init__(self, device: str, broker: MemoryBroker, bundle: Bundle) -> None:
        super().__init__(device, broker, bundle)
        self.skills = (GOSSIP,)
        self.card, self.talk = Card(), None
        self.due, self.done = deque[Train](maxlen=1), list[Completed]()
        self.told: list[Membership] = []
        self.efforts: list[Effort] = []
        self.sent_models: dict[int, np.ndarray] = {}
        self.pull = np.random.default_rng(sum(device.encode())).standard_normal(20, dtype=np.float32)
        # The models of tasks, by their digest, of which one is the common start.
        self.base: np.ndarray | None = None

    talk: Talk | None

    def join(self) -> None:
        super().join()
        assert self.transport is not None
        self.transport.filters = (*self.transport.filters, *TOPICS.of_gossip(self.device))
        self.wire = Wire(Link(self.transport, TOPICS, self.device, self.boot), TOPICS, self.device)
        self.talk = None
        self.due.clear()

    def hello(self) -> None:
        super().hello()
        node = self.card.node if self.talk is None else self.talk.node
        epoch, number = (0, 0) if node is None else (table.node_epoch(node), max(0, node.number - 1))
        self.send(Standing(epoch, number, 0.0))

    def work(self, now: float) -> None:
        assert self.transport is not None
        others = list[Event]()
        for event in tuple(self.transport.events):
            said = self.wire.read(event) if isinstance(event, Incoming) else None
            if isinstance(said, tuple):
                if self.talk is not None:
                    self.talk.heard(*said, now)
            else:
                others.append(event)
        self.transport.events = deque(others)
        super().work(now)
        if self.talk is not None:
            self._step(now)
            self.talk.advance(now)

    def obey(self, body: Body, now: float) -> None:
        if isinstance(body, Membership | Effort):
            (self.told if isinstance(body, Membership) else self.efforts).append(body)  # type: ignore[arg-type]
            if self.talk is not None:
                self.talk.told(body, now)
                self.talk.report()
            return
        super().obey(body, now)

    def train(self, now: float) -> None:
        task = self.task
        assert task is not None
        data = b"".join(self.chunks[i] for i in sorted(self.chunks))
        self.base = np.frombuffer(data, "<f4")[:20].astype(np.float32)
        self.fetching = None
        super().train(now)
        if self.talk is None:
            layout = layout_of(self.bundle.manifest, "full")
            shape = Shape(self.device, layout.digest, [(20,)], self.base)
            node = self.card.node or table.idle(self.base)
            self.talk = Talk(shape, node, self.card, self.wire, self.due.append, self.done.append)
            self.talk.start(now)
            for membership in self.told[-1:]:
                self.talk.told(membership, now)
            self.talk.report()

    def pack(self, now: float) -> None:
        """Only when the exchange has come."""

    def _step(self, now: float) -> None:
        assert self.talk is not None
        membership = self.talk.node.membership
        if not self.due or membership is None or self.task is None or self.fetching is not None:
            return
        train, task = self.due[0], self.task
        assert task.until is not None
        if membership.begun + train.number - 1 >= task.until:
            self._collect(task, train.x, now)
            return
        self.due.popleft()
        step = RATE if train.steps else np.float32(0)
        self.talk.trained(train.epoch, train.number, train.x - step * (train.x - self.pull), now)

    def _collect(self, task: Task, model: np.ndarray, now: float) -> None:
        assert self.base is not None
        layout = layout_of(self.bundle.manifest, "full")
        nothing = np.zeros(layout.n_parameters, np.float32)
        delta, buffers = (model - self.base).astype(np.float32), np.zeros(layout.n_buffers, np.float32)
        payload, _ = encode_update(delta, buffers, nothing, parse_codec(task.codec), layout.digest)
        self.updates += 1
        own = HeldOut(5, 0.5, (sum(self.device.encode()) % 10) / 10)
        offer = Offer(
            task.model, task.run, task.round, self.boot, self.updates, task.model.digest, self.examples, 2, 0.5, 0.01,
            task.codec, own=own,
        )  # fmt: skip
        offer, payload = self.mangle(*named(offer, payload))
        self.outbox[offer.blob.digest] = (offer, payload)
        self.sent_models[task.round] = model
        self.task, self.offer_at = None, now


class GossipSimulation(Simulation):
    """Devices gossip; allowed: what the broker was told of who hears whom, in order."""

    allowed: list[dict[str, tuple[str, ...]]]

    @classmethod
    def of(
        cls, folder: Path, devices: int = 4, gossip: GossipSettings | None = None, **rounds: object
    ) -> "GossipSimulation":
        wanted = {"devices": devices, "count": 3} | rounds
        chosen = gossip or GossipSettings("ring", codec="all/float16", gamma=0.5, exchanges=5, dead_after_s=30.0)
        settings = replace(make_settings(folder, **wanted), gossip=chosen)
        made = cls(folder, settings, write_bundle(folder / "bundle"))
        made.allowed = []
        made.start()
        for i in range(devices):
            made.add(f"dev-{i}")
        return made

    def add(self, device: str) -> GossipAgent:
        agent = GossipAgent(device, self.broker, self.bundle)
        self.agents[device] = agent
        agent.join()
        return agent

    def device(self, name: str) -> GossipAgent:
        agent = self.agents[name]
        assert isinstance(agent, GossipAgent)
        return agent

    @property
    def devices(self) -> list[GossipAgent]:
        return [self.device(name) for name in sorted(self.agents)]

    def allow(self, neighbours: Mapping[str, Sequence[str]]) -> None:
        self.allowed.append({device: tuple(near) for device, near in neighbours.items()})

    def parameters(self) -> np.ndarray:
        """Of the newest version."""
        return np.frombuffer(self.model(), "<f4")[:20]
