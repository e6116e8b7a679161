"""A coordinator made of a few lines, for tests of the agent: it hands out one task and takes the update in."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from protocol.bundle import Bundle
from protocol.envelope import Envelope, decode, encode
from protocol.manifest import MANIFEST_FILE
from protocol.messages import (
    CHUNK_BYTES,
    BlobRef,
    Body,
    Chunk,
    CoordinatorState,
    Hello,
    Need,
    Offer,
    OptimizerSpec,
    Receipt,
    Task,
    TaskReport,
    Unavailable,
    Welcome,
)
from protocol.topics import Channel, Topics
from protocol.transfer import Receiving, ask, receive
from protocol.transport import Incoming, MemoryBroker

RUN = "run"


@dataclass
class FakeCoordinator:
    """Records what it hears; answers Hello and Need; accepts every update, or rejects it with `reject`."""

    broker: MemoryBroker
    bundle: Bundle
    device: str = "device-01"
    epoch: int = 1
    reject: str = ""
    spread_s: float | None = None
    deaf_to: tuple[type, ...] = ()
    heard: list[Body] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.topics = Topics("test")
        self.transport = self.broker.connect("coordinator", self.topics.of_coordinator())
        self.blobs = {
            hashlib.sha256(data).digest(): data
            for path in [MANIFEST_FILE, *(e.path for e in self.bundle.manifest.files)]
            for data in [(self.bundle.root / path).read_bytes()]
        }
        self._receiving: Receiving | None = None
        self._chunks: dict[int, bytes] = {}
        self._offer: Offer | None = None

    def announce(self) -> None:
        state = encode(Envelope(self.epoch, 0, 0, CoordinatorState(self.epoch, accepting=True, spread_s=self.spread_s)))
        self.transport.publish(self.topics.everyone("coordinator"), state, retain=True)

    def add(self, data: bytes) -> BlobRef:
        digest = hashlib.sha256(data).digest()
        self.blobs[digest] = data
        return BlobRef(digest, len(data))

    def task(self, round_: int, model: npt.NDArray[np.float32], *, codec: str = "all/float32", steps: int = 5) -> Task:
        manifest = (self.bundle.root / MANIFEST_FILE).read_bytes()
        return Task(
            run=RUN,
            round=round_,
            manifest=BlobRef(hashlib.sha256(manifest).digest(), len(manifest)),
            model=self.add(model.astype("<f4").tobytes()),
            version=round_ - 1,
            local_steps=steps,
            local_epochs=0,
            batch_size=8,
            learning_rate=0.5,
            optimizer=OptimizerSpec(momentum=0.9),
            codec=codec,
            seed=round_,
            time_left_s=60.0,
        )

    def say(self, body: Body, channel: Channel = "down") -> None:
        self.transport.publish(self.topics.device(self.device, channel), encode(Envelope(self.epoch, 1, 0, body)))

    def work(self, now: float) -> None:
        """Answers everything that has arrived."""
        while (event := self.transport.poll(0)) is not None:
            if isinstance(event, Incoming):
                envelope = decode(event.payload)
                assert isinstance(envelope, Envelope), envelope
                self.heard.append(envelope.body)
                if not isinstance(envelope.body, self.deaf_to):
                    self._answer(envelope.body, now)

    def of(self, kind: type) -> list[Body]:
        return [body for body in self.heard if isinstance(body, kind)]

    @property
    def reports(self) -> list[TaskReport]:
        return [body for body in self.heard if isinstance(body, TaskReport)]

    def _answer(self, body: Body, now: float) -> None:
        match body:
            case Hello():
                self.say(Welcome(RUN, now))
            case Need(digest, indices):
                data = self.blobs.get(digest)
                if data is None:
                    self.say(Unavailable(digest, "unknown blob"))
                    return
                for index in indices:
                    chunk = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                    self.say(Chunk(digest, index, chunk), "down/blob")
            case Offer():
                self._offer, self._receiving, self._chunks = body, Receiving(body.blob), {}
                self._ask(now)
            case Chunk() if self._receiving is not None:
                outcome = receive(self._receiving, body, now)
                assert isinstance(outcome, tuple), outcome
                self._receiving = outcome[0]
                self._chunks[body.index] = body.data
                self._ask(now)
            case _:
                pass

    def _ask(self, now: float) -> None:
        assert self._receiving is not None
        assert self._offer is not None
        self._receiving, need = ask(self._receiving, now)
        if need is not None:
            self.say(need)
        elif self._receiving.complete:
            self.payloads.append(b"".join(self._chunks[i] for i in sorted(self._chunks)))
            digest, task = self._offer.blob.digest, self._offer.task
            self.say(Receipt(digest, task, "rejected" if self.reject else "accepted", self.reject))
            self._receiving = None
