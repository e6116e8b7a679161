"""The same small network over each transport: clients join it, links break and mend."""

import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np

from protocol.mqtt import BrokerAddress, MqttSettings, MqttTransport, parse_url
from protocol.transport import Event, Incoming, MemoryBroker, Transport, Will

E = TypeVar("E", bound=Event)


class Net(Protocol):
    """What a contract test needs of a network."""

    def join(self, client: str, filters: tuple[str, ...], will: Will | None = None) -> Transport: ...
    def cut(self, client: str) -> None: ...
    def restore(self, client: str) -> None: ...
    def close(self) -> None: ...


def next_event(transport: Transport, kind: type[E], *, skip: bool = False, timeout_s: float = 10.0) -> E:
    """Polls until something happens, which must be of this kind; with `skip`, until something of this kind happens."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        event = transport.poll(0.05)
        if isinstance(event, kind):
            return event
        assert event is None or skip, f"{event} came where {kind.__name__} was expected"
    raise AssertionError(f"no {kind.__name__} within {timeout_s} s")


def payloads(transport: Transport, count: int) -> list[bytes]:
    """The payloads of the next messages."""
    return [next_event(transport, Incoming).payload for _ in range(count)]


@dataclass(slots=True)
class MemoryNet:
    """Clients of a MemoryBroker."""

    broker: MemoryBroker = field(default_factory=MemoryBroker)

    def join(self, client: str, filters: tuple[str, ...], will: Will | None = None) -> Transport:
        return self.broker.connect(client, filters, will)

    def cut(self, client: str) -> None:
        self.broker.cut(client)

    def restore(self, client: str) -> None:
        self.broker.restore(client)

    def close(self) -> None:
        pass


@dataclass(slots=True)
class MqttNet:
    """Clients of a real broker, each behind a relay of its own."""

    url: str
    relays: dict[str, "Relay"] = field(default_factory=dict)
    transports: list[MqttTransport] = field(default_factory=list)

    def join(self, client: str, filters: tuple[str, ...], will: Will | None = None) -> Transport:
        relay = self.relays[client] = Relay(parse_url(self.url))
        transport = MqttTransport(quick(relay.address, client), filters, will, rng=np.random.default_rng(1))
        self.transports.append(transport)
        return transport

    def cut(self, client: str) -> None:
        self.relays[client].cut()

    def restore(self, client: str) -> None:
        self.relays[client].restore()

    def close(self) -> None:
        for transport in self.transports:
            transport.close()
        for relay in self.relays.values():
            relay.close()


def quick(address: BrokerAddress, client: str) -> MqttSettings:
    """Settings that try again so soon that no test waits for it."""
    return MqttSettings(address, client, first_retry_s=0.02, longest_retry_s=0.1)


class Relay:
    """A TCP relay in front of a broker that can break every connection without a word, and refuse new ones."""

    def __init__(self, target: BrokerAddress) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress("127.0.0.1", self._server.getsockname()[1])
        self._open = True
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        with self._lock:
            self._open = False
            for sock in self._sockets:
                _shut(sock)

    def restore(self) -> None:
        with self._lock:
            self._open = True

    def close(self) -> None:
        self.cut()
        _shut(self._server)
        for thread in tuple(self._threads):
            thread.join()
        for sock in (self._server, *self._sockets):
            sock.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            with self._lock:
                if not self._open:
                    near.close()
                    continue
                far = socket.create_connection((self._target.host, self._target.port))
                self._sockets += [near, far]
                pumps = [threading.Thread(target=_pump, args=ends) for ends in ((near, far), (far, near))]
                self._threads += pumps
            for pump in pumps:
                pump.start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    _shut(source)
    _shut(sink)


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
