"""A whole fleet in one process: a coordinator on a real store, fake agents that train by formula, and a clock."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from coordinator.daemon import Coordinator
from coordinator.distiller import Distiller
from coordinator.evaluate import Examine
from coordinator.events import Event, Finished, RoundCommitted, UpdateRejected
from coordinator.link import last_will
from coordinator.settings import (
    EvaluationSettings,
    LimitSettings,
    RoundSettings,
    Settings,
    TierSettings,
    TrainingSettings,
)
from coordinator.store import Store
from edge_agent.runtimes.engine import Evaluation
from protocol.bundle import PARAMETERS_FILE, Bundle, open_bundle
from protocol.envelope import Envelope, decode, encode
from protocol.layout import layout_of
from protocol.manifest import (
    FORMAT,
    MANIFEST_FILE,
    Backend,
    ChannelGroup,
    FileEntry,
    Inference,
    Load,
    Manifest,
    Port,
    Segment,
    Tensor,
    Variant,
    format_manifest,
)
from protocol.messages import (
    CHUNK_BYTES,
    BlobRef,
    Body,
    Chunk,
    DeviceState,
    Hello,
    Later,
    Need,
    Offer,
    Receipt,
    Task,
    TaskReport,
    Unavailable,
    Withdraw,
)
from protocol.topics import Channel, Topics
from protocol.transfer import Receiving, ask, receive
from protocol.transport import Connected, Incoming, MemoryBroker, MemoryTransport, Will
from protocol.width import narrowed
from sparse.codecs import encode_update, parse_codec
from tests.tiny import safetensors

TOPICS = Topics("test")
BUFFERS, FROZEN, HEAD = 3, 2, 6


def write_bundle(root: Path, parameters: int = 20, *, tiers: bool = False) -> Bundle:
    """A bundle nobody runs: parameters that start at 1, buffers at 2, frozen at 3. The variant `head` trains the last
    HEAD parameters alone; with `tiers`, the head's are channels, of which `tier-050` keeps half."""
    root.mkdir(parents=True, exist_ok=True)
    sizes = {"weight": parameters - HEAD, "head": HEAD, "running_var": BUFFERS, "fixed": FROZEN}
    starts = {"weight": 1, "head": 1, "running_var": 2, "fixed": 3}
    tensors = {name: np.full(n, starts[name], np.float32) for name, n in sizes.items()}
    files = {PARAMETERS_FILE: safetensors(tensors), "graph.bin": bytes(range(256)) * 300, "inference.onnx": bytes(100)}
    for name, data in files.items():
        (root / name).write_bytes(data)
    manifest = Manifest(
        format=FORMAT,
        line="formula",
        version=1,
        tensors=(
            Tensor("weight", (parameters - HEAD,), 0, "parameter"),
            Tensor("head", (HEAD,), parameters - HEAD, "parameter"),
            Tensor("running_var", (BUFFERS,), parameters, "buffer"),
            Tensor("fixed", (FROZEN,), parameters + BUFFERS, "frozen"),
        ),
        inputs=(Port("x", (3,), "float32"),),
        targets=(Port("y", (), "int64", classes=2),),
        outputs=(Port("scores", (2,), "float32"),),
        loss="cross_entropy",
        metrics=("accuracy",),
        files=tuple(FileEntry(n, len(d), hashlib.sha256(d).hexdigest()) for n, d in files.items()),
        variants=(
            Variant(
                "full",
                {"none": Backend({"train": "graph.bin"}, requires="nothing")},
                load=Load(parameters, 200 << 20, 0) if tiers else None,
            ),
            Variant(
                "head",
                {"none": Backend({"train": "graph.bin"}, requires="nothing")},
                frozen=("weight",),
                frozen_buffers=("running_var",),
            ),
            *(
                (Variant("tier-050", {}, keep={"heads": HEAD // 2}, load=Load(parameters - HEAD // 2, 100 << 20, 0)),)
                if tiers
                else ()
            ),
        ),
        inference=Inference("inference.onnx", {}),
        parity={},
        groups=(ChannelGroup("heads", HEAD),) if tiers else (),
        axes={"head": ((Segment("heads", HEAD),),)} if tiers else {},
    )
    (root / MANIFEST_FILE).write_bytes(format_manifest(manifest))
    return open_bundle(root)


def make_settings(folder: Path, **rounds: object) -> Settings:
    wanted = {"count": 3, "devices": 3, "deadline_s": 60.0} | rounds
    return Settings(
        fleet="test",
        bundle=str(folder / "bundle"),
        state=str(folder / "state"),
        rounds=RoundSettings(**wanted),  # type: ignore[arg-type]
        training=TrainingSettings(batch_size=4, learning_rate=0.1, local_steps=2),
        evaluation=EvaluationSettings(data="unread: the simulation brings its own"),
        limits=LimitSettings(disk_mib=64),
    )


def examine(model: npt.NDArray[np.float32]) -> Evaluation:
    """Not learning, but a function of the model alone."""
    loss = float(np.abs(model).mean())
    return Evaluation(loss, {"accuracy": 1.0 / (1.0 + loss)}, 10)


class FakeAgent:
    """Fetches the model it is told to, adds a formula of device and round, offers the update until it has a receipt.

    `mangle` may change an offer and its payload before they are kept; `silent` devices take tasks and never deliver;
    training takes `train_s`; without `outbox_answers` they offer, and send nothing.
    """

    def __init__(self, device: str, broker: MemoryBroker, bundle: Bundle) -> None:
        self.device, self.broker, self.bundle, self.variant = device, broker, bundle, "full"
        self.boot, self.sequence, self.updates, self.sent_bytes = 1, 0, 0, 0
        self.memory_mib: int | None = None
        self.instance: int | None = None
        self.skills: tuple[str, ...] = ()
        self.examples = 10 + sum(device.encode()) % 7
        self.task: Task | None = None
        self.fetching: Receiving | None = None
        self.chunks: dict[int, bytes] = {}
        self.outbox: dict[bytes, tuple[Offer, bytes]] = {}
        self.settled: dict[str, Receipt] = {}
        self.models: dict[bytes, bytes] = {}
        self.heard: list[Body] = []
        self.offer_at = 0.0
        self.chunks_sent = 0
        self.silent = False
        self.train_s, self.trained_at = 0.0, 0.0
        self.outbox_answers = True
        self.answer_state: str = "accepted"
        self.mangle: Callable[[Offer, bytes], tuple[Offer, bytes]] = lambda offer, payload: (offer, payload)
        self.transport: MemoryTransport | None = None

    def join(self) -> None:
        will = Will(TOPICS.device(self.device, "state"), encode(Envelope(self.boot, 0, 0, DeviceState("lost"))))
        self.transport = self.broker.connect(self.device, TOPICS.of_agent(self.device), will)

    def restart(self) -> None:
        """Forgets all but outbox and settled receipts."""
        self.broker.cut(self.device)
        self.boot, self.sequence, self.sent_bytes, self.task, self.fetching = self.boot + 1, 0, 0, None, None
        self.join()

    def send(self, body: Body, channel: Channel = "up", *, retain: bool = False) -> None:
        assert self.transport is not None
        topic = TOPICS.device(self.device, channel)
        self.sequence += 1
        payload = encode(Envelope(self.boot, self.sequence, self.sent_bytes, body))
        if self.transport.publish(topic, payload, retain=retain):
            self.sent_bytes += len(topic) + len(payload)

    def work(self, now: float) -> None:
        assert self.transport is not None
        while (event := self.transport.poll(0)) is not None:
            if isinstance(event, Connected):
                self.send(DeviceState("ready"), "state", retain=True)
                self.hello()
                self.offer_at = now
            elif isinstance(event, Incoming) and event.topic.startswith(TOPICS.device(self.device, "down")):
                envelope = decode(event.payload)
                assert isinstance(envelope, Envelope)
                self.heard.append(envelope.body)
                self.obey(envelope.body, now)
            elif isinstance(event, Incoming) and event.topic == TOPICS.everyone("coordinator"):
                self.hello()
                self.offer_at = now
        if self.fetching is not None:
            self.fetching, need = ask(self.fetching, now)
            if need is not None:
                self.send(need)
        if self.task is not None and self.fetching is None and not self.silent and now >= self.trained_at:
            self.pack(now)
        if self.outbox and now >= self.offer_at:
            self.offer_at = now + 2.0
            for offer, _ in self.outbox.values():
                self.send(offer)

    def hello(self) -> None:
        task = self.task.name if self.task else None
        self.send(Hello("test", "auto", task, len(self.outbox), self.memory_mib, self.instance, skills=self.skills))

    def obey(self, body: Body, now: float) -> None:
        match body:
            case Task():
                self.begin(body)
            case Chunk() if self.fetching is not None and body.digest == self.fetching.blob.digest:
                taken = receive(self.fetching, body, now)
                assert isinstance(taken, tuple)
                self.fetching, _ = taken
                self.chunks[body.index] = body.data
                if self.fetching.complete:
                    self.train(now)
            case Need(digest, indices) if self.outbox_answers:
                for index in indices:
                    if digest not in self.outbox:
                        self.send(Unavailable(digest, "not in the outbox"))
                        break
                    self.chunks_sent += 1
                    data = self.outbox[digest][1]
                    chunk = Chunk(digest, index, data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES])
                    self.send(chunk, "up/blob")
            case Later(digest, after_s) if digest in self.outbox:
                self.offer_at = now + after_s
            case Receipt(digest, task):
                if self.outbox.pop(digest, None) is not None:
                    self.settled[task] = body
            case Withdraw(task):
                if self.task is not None and self.task.name == task:
                    self.task = self.fetching = None
            case _:
                pass

    def begin(self, task: Task) -> None:
        if task.name in self.settled or any(offer.task == task.name for offer, _ in self.outbox.values()):
            return
        if self.answer_state != "accepted":
            state = "refused" if self.answer_state == "refused" else "failed"
            self.send(TaskReport(task.name, state, reason="test", detail="told to"))  # type: ignore[arg-type]
        elif self.task is None or self.task.name != task.name:
            self.task, self.fetching, self.chunks = task, Receiving(task.model), {}

    def train(self, now: float) -> None:
        task = self.task
        assert task is not None
        self.fetching, self.trained_at = None, now + self.train_s
        self.send(TaskReport(task.name, "accepted", self.examples, "formula"))
        if not self.silent and self.train_s == 0.0:
            self.pack(now)

    def pack(self, now: float) -> None:
        task = self.task
        assert task is not None
        data = b"".join(self.chunks[i] for i in sorted(self.chunks))
        assert hashlib.sha256(data).digest() == task.model.digest
        self.models[task.model.digest] = data
        variant = task.variant or self.variant
        layout = layout_of(narrowed(self.bundle.manifest, variant), variant)
        rng = np.random.default_rng(task.seed)
        payload, _ = encode_update(
            rng.normal(0, 0.1, layout.n_parameters).astype(np.float32),
            rng.normal(0, 0.1, layout.n_buffers).astype(np.float32),
            np.zeros(layout.n_parameters, np.float32),
            parse_codec(task.codec),
            layout.digest,
        )
        self.updates += 1
        offer, payload = self.mangle(
            Offer(
                blob=BlobRef(hashlib.sha256(payload).digest(), len(payload)),
                run=task.run,
                round=task.round,
                update_boot=self.boot,
                update_sequence=self.updates,
                base=task.model.digest,
                examples=self.examples,
                steps=2,
                loss=1.0 / task.round,
                train_s=self.train_s or 0.01,
                codec=task.codec,
                variant=variant,
            ),
            payload,
        )
        self.outbox[offer.blob.digest] = (offer, payload)
        self.task, self.offer_at = None, now


def named(offer: Offer, payload: bytes) -> tuple[Offer, bytes]:
    """The offer with the digest and size of another payload."""
    return replace(offer, blob=BlobRef(hashlib.sha256(payload).digest(), len(payload))), payload


@dataclass
class Simulation:
    """One coordinator, its store in `folder`, and agents by device name."""

    folder: Path
    settings: Settings
    bundle: Bundle
    broker: MemoryBroker = field(default_factory=MemoryBroker)
    agents: dict[str, FakeAgent] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    now: float = 100.0
    wall_s: float = 1_000_000.0
    examine: Examine = examine
    distiller: Distiller | None = None
    client: str = "coordinator"

    @classmethod
    def make(
        cls,
        folder: Path,
        devices: int = 3,
        parameters: int = 20,
        tiers: TierSettings | None = None,
        **rounds: object,
    ) -> "Simulation":
        settings = make_settings(folder, **rounds)
        bundle = write_bundle(folder / "bundle", parameters, tiers=tiers is not None)
        made = cls(folder, settings if tiers is None else replace(settings, tiers=tiers), bundle)
        made.start()
        for i in range(devices):
            made.add(f"dev-{i}")
        return made

    def start(self) -> None:
        self.store = Store(self.folder / "state", self.settings.limits)
        will = last_will(TOPICS, self.store.run, self.store.epoch, self.store.instance)
        self.transport = self.broker.connect(self.client, TOPICS.of_coordinator(), will)
        self.coordinator = Coordinator(
            self.settings,
            self.bundle,
            self.store,
            self.transport,
            lambda: self.now,
            self.events.append,
            self.examine,
            lambda: self.wall_s,
            distiller=self.distiller,
            allow=self.allow,
        )

    def allow(self, neighbours: Mapping[str, Sequence[str]]) -> None:
        """What the broker would be told."""

    def kill(self) -> None:
        """The process is gone between two instructions: nothing is said or written any more."""
        self.broker.cut(self.client)
        self.store.close()

    def add(self, device: str) -> FakeAgent:
        agent = self.agents[device] = FakeAgent(device, self.broker, self.bundle)
        agent.join()
        return agent

    def turn(self) -> None:
        while (event := self.transport.poll(0)) is not None:
            self.coordinator.handle(event, self.now)
        wait = self.coordinator.advance(self.now)
        for agent in self.agents.values():
            agent.work(self.now)
        idle = not self.transport.events and not any(a.transport and a.transport.events for a in self.agents.values())
        self.now += min(max(wait, 0.01), 1.0) if idle else 0.01

    def until(self, reached: Callable[[], bool], turns: int = 2000) -> None:
        for _ in range(turns):
            if reached():
                return
            self.turn()
        raise AssertionError(f"not reached after {turns} turns; last events {self.events[-5:]}")

    def finish(self) -> None:
        self.until(lambda: self.coordinator.finished)

    @property
    def committed(self) -> list[RoundCommitted]:
        return [event for event in self.events if isinstance(event, RoundCommitted)]

    @property
    def rejected(self) -> list[UpdateRejected]:
        return [event for event in self.events if isinstance(event, UpdateRejected)]

    @property
    def ended(self) -> Finished | None:
        return next((event for event in self.events if isinstance(event, Finished)), None)

    def model(self) -> bytes:
        current = self.store.current()
        assert current is not None
        return self.store.models.read(current.blob.digest)
