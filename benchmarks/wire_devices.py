"""Thousands of devices in one process, for load: MQTT 3.1.1 by hand on asyncio, with updates that are made for them.

A real agent is a process with a runtime; what a coordinator sees of one are its connection and its messages, and these
are here as an agent's, greeting and reconnecting included. Nothing is kept on disk.
"""

import asyncio
import hashlib
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from protocol.envelope import Envelope, decode, encode
from protocol.messages import (
    CHUNK_BYTES,
    BlobRef,
    Body,
    Chunk,
    CoordinatorState,
    DeviceState,
    Hello,
    Need,
    Offer,
    Receipt,
    Task,
    TaskReport,
    Welcome,
)
from protocol.mqtt import BrokerAddress
from protocol.topics import Channel, Topics

_CONNECT, _CONNACK, _PUBLISH, _PUBACK, _SUBSCRIBE, _SUBACK = 0x10, 0x20, 0x30, 0x40, 0x82, 0x90
_QOS_1, _RETAIN = 0x02, 0x01
# As `protocol.mqtt` waits before it connects again: a random time up to a ceiling that doubles.
FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 60.0
FIRST_OFFER_S = 2.0
KEEPALIVE_S = 600


@dataclass(slots=True)
class Moments:
    """When things happened to a device, by time.monotonic(); None before they did."""

    connected: float | None = None
    welcomed: float | None = None
    tasked: float | None = None
    settled: float | None = None


class WireDevice(asyncio.Protocol):
    """One device. It takes every task, and offers its update when told to by `offer`.

    withhold: the last chunk of an update is never sent.
    """

    def __init__(self, topics: Topics, device: str, rng: np.random.Generator, *, withhold: bool = False) -> None:
        self.device, self.withhold, self.moments = device, withhold, Moments()
        self.task: Task | None = None
        self.verdict: Receipt | None = None
        self.chunks_sent = 0
        self._topics, self._rng = topics, rng
        self._sequence = self._sent_bytes = self._packet = 0
        self._payload = b""
        self._offer: Offer | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._epoch: int | None = None
        self._spread_s = 0.0
        self._failures = 0

    @property
    def fresh(self) -> bool:
        """Whether it has a task for which it has offered nothing yet."""
        return self.task is not None and (self._offer is None or self._offer.task != self.task.name)

    # The connection

    async def run(self, address: BrokerAddress) -> None:
        """Connects, and again when the connection breaks, until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._lost = loop.create_future()
            try:
                await loop.create_connection(lambda: self, address.host, address.port)
                await self._lost
            except OSError:
                pass
            ceiling = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0**self._failures)
            self._failures += 1
            await asyncio.sleep(self._rng.uniform(0.0, ceiling))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._buffer = transport, bytearray()
        name = self.device.encode()
        body = b"\x00\x04MQTT\x04\x02" + struct.pack("!HH", KEEPALIVE_S, len(name)) + name
        transport.write(_packet(_CONNECT, body))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport, self.moments.connected, self.moments.welcomed = None, None, None
        if not self._lost.done():
            self._lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (found := _split(self._buffer)) is not None:
            kind, start, end = found
            body = bytes(self._buffer[start:end])
            del self._buffer[:end]
            self._packet_in(kind, body)

    def _packet_in(self, kind: int, body: bytes) -> None:
        if kind & 0xF0 == _CONNACK and body[1] == 0:
            filters = b"".join(
                struct.pack("!H", len(f)) + f.encode() + b"\x01" for f in self._topics.of_agent(self.device)
            )
            self._write(_SUBSCRIBE, struct.pack("!H", 1) + filters)
        elif kind & 0xF0 == _SUBACK:
            self.moments.connected, self._failures = time.monotonic(), 0
            self.say(DeviceState("ready"), "state", retain=True)
            asyncio.get_running_loop().call_later(self._rng.uniform(0.0, self._spread_s), self.greet)
        elif kind & 0xF0 == _PUBLISH:
            (length,) = struct.unpack_from("!H", body)
            at = 2 + length
            if kind & 0x06:
                self._write(_PUBACK, body[at : at + 2])
                at += 2
            said = decode(body[at:])
            if isinstance(said, Envelope):
                self._hear(said)

    def _write(self, kind: int, body: bytes) -> None:
        if self._transport is not None:
            self._transport.write(_packet(kind, body))

    # What is said

    def say(self, body: Body, channel: Channel = "up", *, retain: bool = False) -> None:
        """Publishes with QoS 1. What the broker acknowledges is not looked at: a real agent says things again."""
        self._sequence += 1
        topic = self._topics.device(self.device, channel).encode()
        payload = encode(Envelope(1, self._sequence, self._sent_bytes, body))
        self._packet = self._packet % 65535 + 1
        self._sent_bytes += len(topic) + len(payload)
        head = struct.pack("!H", len(topic)) + topic + struct.pack("!H", self._packet)
        self._write(_PUBLISH | _QOS_1 | (_RETAIN if retain else 0), head + payload)

    def greet(self) -> None:
        if self.moments.connected is not None and self.moments.welcomed is None:
            self.say(Hello("benchmark", "none", None if self.task is None else self.task.name))
            asyncio.get_running_loop().call_later(self._rng.uniform(5.0, 10.0), self.greet)

    def offer(self, make: Callable[[Task, np.random.Generator], bytes]) -> None:
        """Offers an update for the task in hand."""
        task = self.task
        assert task is not None
        self.verdict, self.moments.settled = None, None
        self._payload = make(task, self._rng)
        blob = BlobRef(hashlib.sha256(self._payload).digest(), len(self._payload))
        self._offer = Offer(blob, task.run, task.round, 1, task.round, task.model.digest, 10, 1, 1.0, 0.1, task.codec)

    def say_offer(self, retry_s: float = FIRST_OFFER_S) -> None:
        """Says it until there is a receipt, ever more rarely, as an agent does."""
        assert self._offer is not None
        if self.verdict is None and self.moments.connected is not None:
            self.say(self._offer)
        if self.verdict is None:
            wait_s = retry_s * self._rng.uniform(0.5, 1.0)
            asyncio.get_running_loop().call_later(wait_s, self.say_offer, min(2 * retry_s, LONGEST_RETRY_S))

    def _hear(self, said: Envelope) -> None:
        if isinstance(said.body, CoordinatorState):
            self._spread_s = said.body.spread_s or 0.0
        if said.boot != self._epoch and self._epoch is not None:
            self.moments.welcomed = None
            asyncio.get_running_loop().call_later(self._rng.uniform(0.0, max(1.0, self._spread_s)), self.greet)
        self._epoch = said.boot
        match said.body:
            case Welcome():
                self.moments.welcomed = time.monotonic()
            case Task():
                self.moments.tasked = time.monotonic()
                if self.task is None or self.task.name != said.body.name:
                    self.task = said.body
                self.say(TaskReport(said.body.name, "accepted", 10, "none"))
            case Need(digest, indices):
                self._serve(digest, indices)
            case Receipt(digest, _) if self._offer is not None and digest == self._offer.blob.digest:
                self.verdict, self.moments.settled = said.body, time.monotonic()
            case _:
                pass

    def _serve(self, digest: bytes, indices: tuple[int, ...]) -> None:
        assert self._offer is not None
        for index in indices:
            if not (self.withhold and index == self._offer.blob.chunks - 1):
                data = self._payload[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                self.chunks_sent += 1
                self.say(Chunk(digest, index, data), "up/blob")


def _packet(kind: int, body: bytes) -> bytes:
    length, head = len(body), bytearray([kind])
    while True:
        length, digit = length >> 7, length & 0x7F
        head.append(digit | (0x80 if length else 0))
        if not length:
            return bytes(head) + body


def _split(data: bytearray) -> tuple[int, int, int] | None:
    """The first packet: its kind and where its body lies; None while it is not all there."""
    length = 0
    for i in range(1, min(len(data), 5)):
        length |= (data[i] & 0x7F) << 7 * (i - 1)
        if not data[i] & 0x80:
            end = i + 1 + length
            return (data[0], i + 1, end) if len(data) >= end else None
    return None
