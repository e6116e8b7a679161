"""The transport seam, and the in-memory transport that makes one process with many agents the simulator.

A transport carries messages at least once and keeps nothing over a restart. Everything that must survive is the
business of the tables above it, which say things again until they are answered.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Connected:
    """The session is up and every subscription is in force, but for those that a broker refused and that are not
    needed."""

    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The session is down; the transport tries again by itself."""

    reason: str


@dataclass(frozen=True, slots=True)
class Incoming:
    """A message that arrived. It is acknowledged to the broker by the next call of `poll`."""

    topic: str
    payload: bytes


Event = Connected | Disconnected | Incoming


@dataclass(frozen=True, slots=True)
class Will:
    """What the broker says, retained, when this client is lost."""

    topic: str
    payload: bytes


class Transport(Protocol):
    """One client's connection. All calls come from one thread."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Sends at least once while connected. False, and nothing is sent or kept, when there is no connection, or when
        too much waits for its acknowledgement."""

    def poll(self, timeout_s: float) -> Event | None:
        """The next event, or None after `timeout_s`."""

    def close(self) -> None:
        """Leaves without the will. Safe to call twice."""


def matches(pattern: str, topic: str) -> bool:
    """Whether an MQTT topic filter matches a topic."""
    wanted, levels = pattern.split("/"), topic.split("/")
    for i, level in enumerate(wanted):
        if level == "#":
            return True
        if i >= len(levels) or level not in ("+", levels[i]):
            return False
    return len(wanted) == len(levels)


@dataclass(slots=True)
class MemoryBroker:
    """Joins transports inside one process, in order and without loss; `cut` and `restore` break a client's link."""

    _clients: dict[str, "MemoryTransport"] = field(default_factory=dict)
    _retained: dict[str, bytes] = field(default_factory=dict)

    def connect(self, client: str, filters: tuple[str, ...], will: Will | None = None) -> "MemoryTransport":
        transport = MemoryTransport(self, client, filters, will)
        self._clients[client] = transport
        self.restore(client)
        return transport

    def cut(self, client: str) -> None:
        """Breaks one client's connection, as seen from both ends."""
        transport = self._clients[client]
        if transport.connected:
            transport.connected = False
            transport.events.append(Disconnected("cut"))
            if transport.will is not None:
                self.deliver(transport.will.topic, transport.will.payload, retain=True)

    def restore(self, client: str) -> None:
        transport = self._clients[client]
        transport.connected = True
        transport.events.append(Connected())
        for topic, payload in self._retained.items():
            transport.offer(topic, payload)

    def deliver(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        if retain:
            self._retained[topic] = payload
        for client in tuple(self._clients.values()):
            client.offer(topic, payload)


class MemoryTransport:
    """One client of a MemoryBroker."""

    def __init__(self, broker: MemoryBroker, client: str, filters: tuple[str, ...], will: Will | None) -> None:
        self.broker, self.client, self.filters, self.will = broker, client, filters, will
        self.connected = False
        self.events: deque[Event] = deque()

    def offer(self, topic: str, payload: bytes) -> None:
        if self.connected and any(matches(f, topic) for f in self.filters):
            self.events.append(Incoming(topic, payload))

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        if self.connected:
            self.broker.deliver(topic, payload, retain=retain)
        return self.connected

    def poll(self, timeout_s: float) -> Event | None:
        return self.events.popleft() if self.events else None

    def close(self) -> None:
        self.connected = False
        self.events.clear()
