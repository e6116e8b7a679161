"""A fleet that learns a mask over frozen weights, in one process: real agents, the real coordinator, one clock."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator import link as coordinator_link
from coordinator.daemon import Coordinator
from coordinator.events import Event, RoundCommitted
from coordinator.next_model import structure_of
from coordinator.settings import (
    EvaluationSettings,
    RoundSettings,
    ServerSettings,
    Settings,
    TrainingSettings,
)
from coordinator.store import Store
from coordinator.structure import Structure
from coordinator.vote_settings import MaskingSettings
from edge_agent import link as agent_link
from edge_agent.agent import Agent
from edge_agent.data import DataSettings
from edge_agent.runtimes.engine import Batch, Evaluation, Vector
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.settings import AgentSettings, BrokerSettings
from edge_agent.settings import TrainingSettings as AgentTraining
from edge_agent.store import AgentStore
from protocol.bundle import Bundle
from protocol.envelope import Envelope, decode
from protocol.layout import maskable_layout
from protocol.messages import OptimizerSpec
from protocol.topics import Topics
from protocol.transport import MemoryBroker, MemoryTransport
from sparse.codecs import decode_ballot
from sparse.masks import Mask
from tests.tiny import CLASSES, write_bundle

Labels = npt.NDArray[np.int64]
FEATURES, TOPICS = 12, Topics("test")
D = CLASSES * FEATURES
N = D + CLASSES
WEIGHTS = np.random.default_rng(4).normal(size=N).astype(np.float32)
# What tells the classes apart is there, among other things.
WEIGHTS[0], WEIGHTS[FEATURES] = -1.0, 1.0
ADAM = OptimizerSpec("adamw")


def settings_of(folder: Path, devices: int, rounds: int, keep: float = 0.9, rate: float = 1.0) -> Settings:
    return Settings(
        fleet="test",
        bundle=str(folder / "bundle"),
        state=str(folder / "state"),
        rounds=RoundSettings(count=rounds, devices=devices, deadline_s=60.0),
        training=TrainingSettings(batch_size=10, learning_rate=0.3, local_steps=8, optimizer=ADAM),
        evaluation=EvaluationSettings(data="unread: the test brings its own"),
        server=ServerSettings(learning_rate=rate),
        masking=MaskingSettings(keep),
    )


@dataclass
class Listening(MemoryBroker):
    """A broker that remembers what was said."""

    said: list[tuple[str, bytes]] = field(default_factory=list)

    def deliver(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.said.append((topic, payload))
        super().deliver(topic, payload, retain=retain)

    def of(self, kind: type) -> list[object]:
        read = [decode(payload) for _, payload in self.said]
        return [
            envelope.body for envelope in read if isinstance(envelope, Envelope) and isinstance(envelope.body, kind)
        ]


class Fleet:
    """The daemons in one process, by one clock."""

    def __init__(self, settings: Settings, bundle: Bundle, devices: int, *, checkpoints: bool) -> None:
        self.checkpoints = checkpoints
        self.settings, self.bundle, self.folder = settings, bundle, Path(settings.state).parent
        self.broker, self.now, self.events = Listening(), 100.0, list[Event]()
        self.start()
        self.agents: dict[str, Agent] = {}
        self.stores: dict[str, AgentStore] = {}
        self.transports: dict[str, MemoryTransport] = {}
        for i in range(devices):
            name = f"dev-{i}"
            (self.folder / name).mkdir()
            x, y = data(i, 60)
            np.savez(self.folder / name / "shard.npz", x=x, y=y)
            self.start_agent(name)

    def start(self) -> None:
        self.store = Store(Path(self.settings.state), self.settings.limits)
        will = coordinator_link.last_will(TOPICS, self.store.run, self.store.epoch, self.store.instance)
        self.transport = self.broker.connect("coordinator", TOPICS.of_coordinator(), will)
        self.coordinator = Coordinator(
            self.settings, self.bundle, self.store, self.transport, lambda: self.now, self.events.append, self.examine
        )

    def kill(self) -> None:
        self.broker.cut("coordinator")
        self.store.close()

    def start_agent(self, name: str) -> None:
        folder = self.folder / name
        wanted = AgentSettings(
            *(name, "test", "state", BrokerSettings("mqtt://127.0.0.1:1883"), DataSettings("shard.npz")),
            training=AgentTraining(checkpoint_s=1e-9 if self.checkpoints else 0.0),
        )
        store = self.stores[name] = AgentStore(folder / "state", 1 << 24)
        will = agent_link.last_will(TOPICS, name, store.boot)
        transport = self.transports[name] = self.broker.connect(name, TOPICS.of_agent(name), will)
        self.agents[name] = Agent(wanted, folder, store, transport, np.random.default_rng(1))

    def kill_agent(self, name: str) -> None:
        self.broker.cut(name)
        self.stores[name].close()

    def examine(self, model: Vector) -> Evaluation:
        x, y = data(99, 400)
        return NumpyEngine(self.bundle).evaluate(model, Batch((x,), (y,)))

    def turn(self) -> None:
        while (event := self.transport.poll(0)) is not None:
            self.coordinator.handle(event, self.now)
        self.coordinator.advance(self.now)
        for name, agent in self.agents.items():
            while (event := self.transports[name].poll(0)) is not None:
                agent.handle(event, self.now)
            agent.advance(self.now)
        self.now += 0.05

    def until_version(self, number: int, *, disturb: bool = False) -> "Fleet":
        for turn in range(4000):
            if self.coordinator.finished or len(self.committed) >= number:
                return self
            self.turn()
            if disturb and turn % 7 == 3:
                name = sorted(self.agents)[turn % len(self.agents)]
                self.kill_agent(name)
                self.start_agent(name)
            if disturb and turn % 31 == 17:
                self.kill()
                self.start()
        raise AssertionError(f"not reached; last events {self.events[-4:]}")

    @property
    def committed(self) -> list[RoundCommitted]:
        return [event for event in self.events if isinstance(event, RoundCommitted)]

    def structure(self, version: int) -> Structure:
        return structure_of(self.store, version)

    def close(self) -> None:
        self.kill()
        for store in self.stores.values():
            store.close()


def data(seed: int, examples: int) -> tuple[Vector, Labels]:
    x = np.random.default_rng(seed).normal(size=(examples, FEATURES)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64)


def fleet_of(folder: Path, devices: int, rounds: int, rate: float = 1.0, *, checkpoints: bool = False) -> Fleet:
    folder.mkdir(exist_ok=True)
    bundle = write_bundle(folder / "bundle", features=FEATURES, values=WEIGHTS)
    return Fleet(settings_of(folder, devices, rounds, rate=rate), bundle, devices, checkpoints=checkpoints)


def payload_of(fleet: Fleet, number: int, device: str) -> bytes:
    (digest,) = fleet.store._sql.execute(
        "SELECT digest FROM updates WHERE round = ? AND device = ?", (number, device)
    ).fetchone()
    return fleet.store.updates.read(digest)


def bits(fleet: Fleet, payload: bytes) -> Mask:
    return decode_ballot(payload, D, maskable_layout(fleet.bundle.manifest).digest)
