"""A fleet without a hub of real agents over a broker in memory, told by a council of a few lines; its gossip gets lost
and doubled, and its devices are killed at durable steps."""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from coordinator import gossip as council_table
from coordinator.gossip import Council, Rules, fixed
from edge_agent.agent import Agent
from edge_agent.assets import Assets
from edge_agent.child import ChildTrainer
from edge_agent.child_process import ChildProcess, Launch, launcher
from edge_agent.data import DataSettings
from edge_agent.eligibility import EligibilitySettings
from edge_agent.gossip.node import Vector
from edge_agent.settings import AgentSettings, BrokerSettings, TrainingSettings
from edge_agent.store import AgentStore
from edge_agent.trusted import Trusted
from edge_agent.watch import Source
from protocol import failpoints
from protocol.bundle import Bundle
from protocol.envelope import Envelope, decode, encode
from protocol.gossip import Membership, Standing
from protocol.layout import layout_of
from protocol.manifest import MANIFEST_FILE
from protocol.messages import (
    CHUNK_BYTES,
    BlobRef,
    Body,
    Chunk,
    Hello,
    Need,
    Offer,
    OptimizerSpec,
    Receipt,
    Task,
    TaskReport,
    Welcome,
)
from protocol.topics import Channel, Topics
from protocol.transfer import Receiving, ask, receive
from protocol.transport import Incoming, MemoryBroker
from sparse.codecs import decode_update
from tests.tiny import write_bundle, write_shard

RUN = "run"
SETTINGS = Rules("ring", "", "topk:0.5/float32/rice", fixed(0.4), local_steps=2, first=4, minimum=4, dead_after_s=1e9)
MOMENTUM = OptimizerSpec(momentum=0.9, keep_momentum=True)


class Killed(BaseException):
    """A process ends in the middle of what it does."""


@dataclass
class Bad(MemoryBroker):
    """A broker that loses and doubles so much of what devices say to each other."""

    loss: float = 0.0
    twice: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))
    lost: int = 0
    carried: int = 0

    def deliver(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        if not topic.endswith("/gossip") and "/gossip/" not in topic and "/want/" not in topic:
            super().deliver(topic, payload, retain=retain)
            return
        drawn = self.rng.random()
        self.carried += 1
        self.lost += drawn < self.loss
        for _ in range(0 if drawn < self.loss else 2 if drawn > 1 - self.twice else 1):
            super().deliver(topic, payload)


@dataclass
class Update:
    offer: Offer
    delta: Vector


class Device:
    """An agent with a state folder, and what it is started with."""

    def __init__(self, hall: "Hall", name: str, **data: object) -> None:
        self.hall, self.name, self.folder = hall, name, hall.folder / name
        self.child: ChildProcess | None = None
        self.data = DataSettings(path="shard.npz", **data)  # type: ignore[arg-type]
        self.folder.mkdir(parents=True)
        write_shard(self.folder / "shard.npz", seed=sum(name.encode()))
        self.source: Source | None = hall.source
        self.start()

    def start(self) -> None:
        topics = self.hall.topics
        settings = AgentSettings(
            self.name,
            topics.fleet,
            "state",
            BrokerSettings("mqtt://127.0.0.1:1883"),
            self.data,
            TrainingSettings(),
            eligibility=self.hall.eligibility,
        )
        self.store = AgentStore(self.folder / "state", 1 << 24)
        filters = (*topics.of_agent(self.name), *topics.of_gossip(self.name))
        self.transport = self.hall.broker.connect(self.name, filters)
        rng, launch = np.random.default_rng(1), launcher(settings, self.folder, self.folder / "state", lambda: None)
        self.agent = Agent(
            *(settings, self.folder, self.store, self.transport, rng),
            trainer=(lambda assets: self._child(assets, launch)) if self.hall.children else None,
            device=self.source,
            trusted=self.hall.trusted(self),
        )

    def _child(self, assets: Assets, launch: Launch) -> ChildTrainer:
        """Of its own process, which a test may kill."""

        def launched() -> ChildProcess:
            self.child = launch()
            return self.child

        return ChildTrainer(assets, launched)

    def end(self) -> None:
        self.transport.close()
        if self.child is not None:
            self.agent.stop()
        self.store.close()

    def restart(self) -> None:
        """Killed, and started again: nothing but its folder survives."""
        while True:
            self.end()
            try:
                self.start()
                return
            except Killed:
                self.hall.killed += 1

    def turn(self, now: float) -> float:
        while (event := self.transport.poll(0)) is not None:
            self.agent.handle(event, now)
        return self.agent.advance(now)


@dataclass
class Hall:
    """Devices, the coordinator's table of who is a neighbour, and tasks said by hand."""

    folder: Path
    settings: Rules = SETTINGS
    fleet: str = "hall"
    eligibility: EligibilitySettings = EligibilitySettings()  # noqa: RUF009 (frozen)
    loss: float = 0.0
    twice: float = 0.0
    names: tuple[str, ...] = ("aa", "bb", "cc", "dd")
    data: dict[str, object] = field(default_factory=dict)
    # Whether devices train in a process of their own, on the system's clock.
    children: bool = False
    source: Source | None = None
    now: float = 0.0
    updates: dict[tuple[str, int], Update] = field(default_factory=dict)
    reports: dict[str, list[TaskReport]] = field(default_factory=dict)
    standings: dict[str, list[Standing]] = field(default_factory=dict)
    hellos: list[Hello] = field(default_factory=list)
    killed: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.topics = Topics(self.fleet)
        self.broker, self.council = Bad(loss=self.loss, twice=self.twice), Council(RUN)
        self.transport = self.broker.connect("coordinator", self.topics.of_coordinator())
        self.bundle: Bundle = write_bundle(self.folder / "bundle")
        self.layout = layout_of(self.bundle.manifest, "full")
        files = [MANIFEST_FILE, *(e.path for e in self.bundle.manifest.files)]
        self.blobs = {hashlib.sha256(d).digest(): d for d in ((self.bundle.root / f).read_bytes() for f in files)}
        self.tasks: dict[str, Task] = {}
        self._receiving: dict[str, tuple[Offer, Receiving, dict[int, bytes]]] = {}
        self._sequence = 0
        self.devices = {name: Device(self, name, **self.data) for name in self.names}

    def end(self) -> None:
        for device in self.devices.values():
            device.end()

    def task(self, round_: int, model: Vector, until: int, device: str = "", **how: object) -> Task:
        manifest = (self.bundle.root / MANIFEST_FILE).read_bytes()
        data = model.astype("<f4").tobytes()
        self.blobs[hashlib.sha256(data).digest()] = data
        task = Task(
            run=RUN,
            round=round_,
            manifest=BlobRef(hashlib.sha256(manifest).digest(), len(manifest)),
            model=BlobRef(hashlib.sha256(data).digest(), len(data)),
            version=round_ - 1,
            local_steps=2,
            local_epochs=0,
            batch_size=8,
            learning_rate=0.1,
            optimizer=MOMENTUM,
            codec="all/float32",
            seed=round_ * 1000 + sum(device.encode()),
            time_left_s=1e6,
            until=until,
        )
        return replace(task, **how)  # type: ignore[arg-type]

    def assign(self, round_: int, model: Vector, until: int, **how: object) -> None:
        """To every device, until it has an update of it."""
        self.tasks = {name: self.task(round_, model, until, name, **how) for name in self.devices}
        for name, task in self.tasks.items():
            self.say(name, task)

    def say(self, device: str, body: Body, channel: Channel = "down") -> None:
        self._sequence += 1
        topic = self.topics.device(device, channel)
        self.transport.publish(topic, self.sealed(topic, Envelope(1, self._sequence, 0, body)))

    def introduce(self, device: str, said: Membership) -> None:
        near = (replace(neighbour, key=self.key_of(neighbour.device)) for neighbour in said.neighbours)
        self.say(device, replace(said, neighbours=tuple(near)))

    def sealed(self, topic: str, said: Envelope) -> bytes:
        """What a coordinator's message is in bytes."""
        return encode(said)

    def trusted(self, device: Device) -> Trusted | None:
        """Whom a device believes."""
        return None

    def key_of(self, device: str) -> bytes | None:
        """By which its neighbours believe a device."""
        return None

    def collect(self, round_: int, turns: int = 40_000) -> dict[str, Vector]:
        """Every device's own model, once all of them have come."""
        self.until(lambda: all((name, round_) in self.updates for name in self.devices), turns)
        return {name: self.own(name, round_) for name in self.devices}

    def until(self, reached: Callable[[], bool], turns: int = 40_000) -> None:
        ends = time.monotonic() + 60.0
        while turns > 0 or (self.children and time.monotonic() < ends):
            if reached():
                return
            self.turn()
            turns -= 1
        states = {name: device.agent.standing().gossip for name, device in self.devices.items()}
        raise AssertionError(f"in vain: {states} {[reports[-1:] for reports in self.reports.values()]}")

    def own(self, device: str, round_: int) -> Vector:
        found = self.updates[device, round_]
        model = np.frombuffer(self.blobs[found.offer.base], "<f4")
        return (model + found.delta).astype(np.float32)

    def turn(self) -> None:
        waits = []
        for device in list(self.devices.values()):
            try:
                waits.append(device.turn(self.now))
            except Killed:
                self.killed += 1
                device.restart()
                waits.append(0.0)
        self.work()
        if self.children:
            self.now = time.monotonic()
        elif not any(t.transport.events for t in self.devices.values()):
            self.now += min(max(min(waits), 0.001), 1.0)

    def work(self) -> None:
        """The coordinator's part."""
        while (event := self.transport.poll(0)) is not None:
            topic = self.topics.parse(event.topic) if isinstance(event, Incoming) else None
            if topic is None or not isinstance(event, Incoming):
                continue
            said = decode(event.payload)
            assert isinstance(said, Envelope), said
            self._answer(topic.device, said)
        self.council, told = council_table.due(self.council, self.settings, self.now)
        for device, membership in told.memberships.items():
            self.introduce(device, membership)

    def _answer(self, device: str, said: Envelope) -> None:
        body = said.body
        match body:
            case Hello():
                self.hellos.append(body)
                known = device in self.council.members
                self.council = council_table.here(self.council, device, self.now, model=known)
                self.say(device, Welcome(RUN, 0.0, instance=body.instance, hello=said.sequence))
                again = council_table.unheard(self.council, device)
                if again is not None:
                    self.introduce(device, again)
                task = self.tasks.get(device)
                if task is not None and (device, task.round) not in self.updates:
                    self.say(device, task)
            case Standing():
                self.standings.setdefault(device, []).append(body)
                self.council = council_table.stands(self.council, device, body, self.now)
            case TaskReport():
                self.reports.setdefault(device, []).append(body)
            case Need(digest, indices):
                for index in indices:
                    chunk = self.blobs[digest][index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                    self.say(device, Chunk(digest, index, chunk), "down/blob")
            case Offer():
                self._receiving[device] = body, Receiving(body.blob), {}
                self._ask(device)
            case Chunk() if device in self._receiving:
                offer, receiving, chunks = self._receiving[device]
                outcome = receive(receiving, body, self.now)
                if isinstance(outcome, tuple):
                    self._receiving[device] = offer, outcome[0], {**chunks, body.index: body.data}
                    self._ask(device)
            case _:
                pass

    def _ask(self, device: str) -> None:
        offer, receiving, chunks = self._receiving[device]
        receiving, need = ask(receiving, self.now)
        self._receiving[device] = offer, receiving, chunks
        if need is not None:
            self.say(device, need)
        elif receiving.complete:
            payload = b"".join(chunks[i] for i in sorted(chunks))
            total, buffers = self.layout.n_parameters, self.layout.n_buffers
            delta, rest = decode_update(payload, total, buffers, self.layout.digest)
            found = Update(offer, np.concatenate([delta, rest]))
            before = self.updates.setdefault((device, offer.round), found)
            assert (before.offer.blob, before.offer.update_sequence) == (offer.blob, offer.update_sequence)
            del self._receiving[device]
            self.say(device, Receipt(offer.blob.digest, offer.task, "accepted"))


def killer(hall: Hall, at: Callable[[failpoints.Failpoint], bool]) -> Callable[[failpoints.Failpoint], None]:
    """Ends the process that reaches a failpoint of `at`'s choice."""

    def kill(name: failpoints.Failpoint) -> None:
        if name.startswith("agent.") and at(name):
            raise Killed

    return kill
