"""MqttTransport against a broker that the test plays itself, packet by packet, and against brokers that die."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.broker import Broker, BrokerKind, start_broker
from protocol import mqtt
from protocol.mqtt import BrokerAddress, MqttSettings, MqttTransport, free_port, parse_url
from protocol.transport import Connected, Disconnected, Incoming, Will
from tests.conftest import require_broker
from tests.protocol.nets import next_event, quick
from tests.waiting import until

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, DISCONNECT = 1, 2, 3, 4, 8, 9, 12, 14


class ScriptedBroker:
    """One end of MQTT 3.1.1, spoken by hand."""

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = BrokerAddress("127.0.0.1", self._server.getsockname()[1])
        self._links: list[socket.socket] = []
        self.bytes = b""

    def accept(self) -> None:
        self._server.settimeout(10)
        link, _ = self._server.accept()
        link.settimeout(10)
        self._links.append(link)
        self.bytes = b""

    def read(self) -> tuple[int, bytes]:
        """The next packet's type and content; (0, b"") at the end of the connection."""
        while True:
            if len(self.bytes) >= 2:
                length, used = self.bytes[1] & 127, 2
                if self.bytes[1] & 128:
                    length, used = length | self.bytes[2] << 7, 3
                if len(self.bytes) >= used + length:
                    packet, self.bytes = self.bytes[: used + length], self.bytes[used + length :]
                    return packet[0] >> 4, packet[used:]
            data = b""
            with suppress(ConnectionResetError):
                data = self._links[-1].recv(1 << 16)
            if not data:
                return 0, b""
            self.bytes += data

    def send(self, data: bytes) -> None:
        self._links[-1].sendall(data)

    def nothing_arrives(self, wait_s: float = 0.15) -> bool:
        self._links[-1].settimeout(wait_s)
        try:
            self.read()
            return False
        except TimeoutError:
            return True
        finally:
            self._links[-1].settimeout(10)

    def welcome(self, granted: bytes = b"\x01") -> None:
        """Takes a connection up to its subscription's confirmation."""
        self.accept()
        assert self.read()[0] == CONNECT
        self.send(bytes([CONNACK << 4, 2, 0, 0]))
        kind, content = self.read()
        assert kind == SUBSCRIBE
        self.send(bytes([SUBACK << 4, 2 + len(granted)]) + content[:2] + granted)

    def drop(self) -> None:
        self._links[-1].close()

    def close(self) -> None:
        for link in (*self._links, self._server):
            link.close()


def message(mid: int, payload: bytes, *, qos: int = 1, topic: bytes = b"a") -> bytes:
    body = struct.pack(">H", len(topic)) + topic + (struct.pack(">H", mid) if qos else b"") + payload
    assert len(body) < 128
    return bytes([PUBLISH << 4 | qos << 1, len(body)]) + body


@pytest.fixture
def scripted() -> Iterator[ScriptedBroker]:
    broker = ScriptedBroker()
    yield broker
    broker.close()


@pytest.fixture
def client(scripted: ScriptedBroker) -> Iterator[MqttTransport]:
    transport = MqttTransport(
        quick(scripted.address, "client"), ("a",), Will("w", b"lost"), rng=np.random.default_rng(0)
    )
    yield transport
    transport.close()
    until(lambda: not any(thread.name == "mqtt-client" for thread in threading.enumerate()))


@pytest.mark.parametrize("connected", [True, False])
def test_a_wait_ends_at_once_when_another_thread_asks_for_it(
    scripted: ScriptedBroker, client: MqttTransport, connected: bool
) -> None:
    if connected:
        client.poll(0.0)
        scripted.welcome()
        next_event(client, Connected)
    else:
        scripted.close()
        while not isinstance(client.poll(10.0), Disconnected):
            pass
        client._retry_at = time.monotonic() + 100.0
    # Before the wait, and during it.
    client.wake()
    began = time.monotonic()
    assert client.poll(60.0) is None
    ring = threading.Timer(0.1, client.wake)
    ring.start()
    assert client.poll(60.0) is None
    ring.join()
    assert time.monotonic() - began < 30.0
    # And what was asked for once ends one wait, not two.
    assert client.poll(0.05) is None
    if connected:
        scripted.send(message(5, b"then"))
        assert client.poll(60.0) == Incoming("a", b"then")


def test_it_is_connected_only_once_the_subscriptions_are_confirmed(
    scripted: ScriptedBroker, client: MqttTransport
) -> None:
    assert client.poll(0.0) is None
    scripted.accept()
    kind, content = scripted.read()
    assert kind == CONNECT
    assert content[:10] == b"\x00\x04MQTT\x04" + bytes([0b00101110]) + b"\x00\x3c"
    scripted.send(bytes([CONNACK << 4, 2, 0, 0]))
    kind, content = scripted.read()
    assert (kind, content[2:]) == (SUBSCRIBE, b"\x00\x01a\x01")
    scripted.send(message(5, b"retained"))
    assert client.poll(0.1) is None
    assert not client.publish("b", b"too early")
    scripted.send(bytes([SUBACK << 4, 3]) + content[:2] + b"\x01")
    next_event(client, Connected)
    assert next_event(client, Incoming).payload == b"retained"
    assert client.publish("b", b"now")
    assert scripted.read()[0] == PUBLISH


def test_a_message_is_acknowledged_by_the_poll_after_the_one_that_returned_it(
    scripted: ScriptedBroker, client: MqttTransport
) -> None:
    assert client.poll(0.0) is None
    scripted.welcome()
    next_event(client, Connected)
    scripted.send(message(7, b"one") + message(8, b"two"))
    assert next_event(client, Incoming).payload == b"one"
    assert scripted.nothing_arrives()
    assert next_event(client, Incoming).payload == b"two"
    assert scripted.read() == (PUBACK, struct.pack(">H", 7))
    assert scripted.nothing_arrives()
    assert client.poll(0.0) is None
    assert scripted.read() == (PUBACK, struct.pack(">H", 8))


def test_nothing_of_a_lost_connection_reaches_the_next_one(scripted: ScriptedBroker, client: MqttTransport) -> None:
    assert client.poll(0.0) is None
    scripted.welcome()
    next_event(client, Connected)
    scripted.send(message(7, b"handled as the link breaks"))
    next_event(client, Incoming)
    assert client.publish("b", b"on the broken link")
    scripted.drop()
    next_event(client, Disconnected)
    assert not client.publish("b", b"meanwhile")
    until(lambda: client.poll(0.02) is None)
    scripted.welcome()
    next_event(client, Connected)
    assert scripted.nothing_arrives()
    assert client.publish("b", b"again")
    kind, content = scripted.read()
    assert (kind, content[-5:]) == (PUBLISH, b"again")


def test_what_was_published_is_written_before_the_goodbye(scripted: ScriptedBroker, client: MqttTransport) -> None:
    assert client.poll(0.0) is None
    scripted.welcome()
    next_event(client, Connected)
    assert client.publish("b", b"last word")
    client.close()
    assert [scripted.read()[0] for _ in range(3)] == [PUBLISH, DISCONNECT, 0]


def test_a_client_closed_while_it_connects_does_not_introduce_itself(
    scripted: ScriptedBroker, client: MqttTransport
) -> None:
    assert client.poll(0.0) is None
    scripted.accept()
    assert scripted.read()[0] == CONNECT
    client.close()
    assert scripted.read()[0] == DISCONNECT


def test_too_much_without_acknowledgement_is_refused_and_sent_in_order_once_it_is_given(
    scripted: ScriptedBroker, client: MqttTransport
) -> None:
    assert client.poll(0.0) is None
    scripted.welcome()
    next_event(client, Connected)
    taken = sum(client.publish("b", struct.pack(">H", i)) for i in range(mqtt.MAX_OUTSTANDING + 50))
    assert taken == mqtt.MAX_OUTSTANDING
    window = [scripted.read()[1] for _ in range(mqtt.MAX_INFLIGHT)]
    assert scripted.nothing_arrives()
    seen = []
    for i in range(taken):
        content = window[i] if i < len(window) else scripted.read()[1]
        seen.append(struct.unpack(">H", content[-2:])[0])
        scripted.send(bytes([PUBACK << 4, 2]) + content[3:5])
    assert seen == list(range(taken))


def test_a_flood_waits_in_tcp_and_not_in_memory(scripted: ScriptedBroker, client: MqttTransport) -> None:
    assert client.poll(0.0) is None
    scripted.welcome()
    next_event(client, Connected)
    count = 5 * mqtt.MAX_UNREAD
    scripted.send(b"".join(message(0, struct.pack(">H", i), qos=0) for i in range(count)))
    session = client._session
    assert session is not None
    until(session.events.full)
    assert session.events.qsize() == mqtt.MAX_UNREAD
    assert client.publish("b", b"the other direction still works")
    got = [struct.unpack(">H", next_event(client, Incoming).payload)[0] for _ in range(count)]
    assert got == list(range(count))
    assert scripted.read()[0] == PUBLISH


@pytest.mark.parametrize(
    ("code", "words"), [(5, "Not authorized"), (3, "Server unavailable"), (1, "protocol")], ids=["5", "3", "1"]
)
def test_a_refusal_is_told_in_the_brokers_words(
    scripted: ScriptedBroker, client: MqttTransport, code: int, words: str
) -> None:
    assert client.poll(0.0) is None
    scripted.accept()
    scripted.send(bytes([CONNACK << 4, 2, 0, code]))
    assert words in next_event(client, Disconnected).reason


def test_a_refused_subscription_is_told_by_its_filter(scripted: ScriptedBroker, client: MqttTransport) -> None:
    assert client.poll(0.0) is None
    scripted.welcome(granted=b"\x80")
    assert "subscription to ['a']" in next_event(client, Disconnected).reason


def test_a_connection_does_without_a_refused_subscription_that_is_dispensable(scripted: ScriptedBroker) -> None:
    settings = replace(quick(scripted.address, "without"), dispensable=("b",))
    with closing(MqttTransport(settings, ("a", "b"), rng=np.random.default_rng(0))) as transport:
        assert transport.poll(0.0) is None
        scripted.welcome(granted=b"\x01\x80")
        assert next_event(transport, Connected).refused == ("b",)


def test_a_broker_that_never_answers_is_given_up(
    scripted: ScriptedBroker, client: MqttTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "SETUP_S", 0.2)
    assert client.poll(0.0) is None
    scripted.accept()
    assert "no answer" in next_event(client, Disconnected).reason
    until(lambda: client.poll(0.02) is None)
    scripted.welcome()
    next_event(client, Connected)


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\x00",
        bytes([CONNACK << 4, 0]),
        bytes([SUBACK << 4, 2, 0, 9]),
        b"\x30\xff\xff\xff\xff\xff",
        b"\x32\x04\x00\x09ab",
        b"\x30\x02\x00\x00",
        b"\xf0\x00",
    ],
    ids=lambda data: data.hex(),
)
def test_a_broker_that_speaks_nonsense_is_left_and_tried_again(
    scripted: ScriptedBroker, client: MqttTransport, data: bytes
) -> None:
    assert client.poll(0.0) is None
    scripted.welcome()
    next_event(client, Connected)
    scripted.send(data)
    scripted.drop()
    next_event(client, Disconnected)


@pytest.mark.parametrize("topic", [b"b", b"a/b", b"\xff\xfe"], ids=str)
def test_a_message_that_was_not_asked_for_is_acknowledged_and_dropped(
    scripted: ScriptedBroker, client: MqttTransport, topic: bytes
) -> None:
    assert client.poll(0.0) is None
    scripted.welcome()
    next_event(client, Connected)
    scripted.send(message(1, b"for somebody else", topic=topic) + message(2, b"for us"))
    assert scripted.read() == (PUBACK, struct.pack(">H", 1))
    assert next_event(client, Incoming) == Incoming("a", b"for us")


class Ceilings(np.random.Generator):
    """Jitter that is always nothing, and remembers what it could have been."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))
        self.seen: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0, size: None = None) -> float:  # type: ignore[override]
        assert low == 0.0
        self.seen.append(high)
        return 0.0


def test_with_no_broker_each_attempt_is_told_and_the_pauses_double_up_to_the_longest() -> None:
    rng = Ceilings()
    address = BrokerAddress("127.0.0.1", free_port())
    client = MqttTransport(MqttSettings(address, "client"), (), rng=rng)
    for _ in range(10):
        assert "Connection refused" in next_event(client, Disconnected).reason
    client.close()
    assert rng.seen == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_connection_lost_early_does_not_reset_the_pause_and_a_stable_one_does(
    scripted: ScriptedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = Ceilings()
    client = MqttTransport(MqttSettings(scripted.address, "client"), ("a",), rng=rng)
    for stable_s in (10.0, 10.0, 10.0, 0.0):
        monkeypatch.setattr(mqtt, "STABLE_S", stable_s)
        assert client.poll(0.0) is None
        scripted.welcome()
        next_event(client, Connected)
        scripted.drop()
        next_event(client, Disconnected)
    client.close()
    assert rng.seen == [0.5, 1, 2, 0.5]


def test_polling_without_a_broker_takes_no_longer_than_it_may() -> None:
    # 192.0.2.0/24 is reserved for documentation: nothing there answers, not even with a refusal.
    client = MqttTransport(quick(BrokerAddress("192.0.2.1", 1883), "client"), (), rng=np.random.default_rng(0))
    started = time.monotonic()
    client.poll(0.1)
    assert time.monotonic() - started < 1.0


@pytest.mark.real
@pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
def test_a_broker_that_is_killed_and_comes_back_is_found_again(kind: BrokerKind, tmp_path: Path) -> None:
    require_broker(kind)
    broker = start_broker(kind, free_port(), tmp_path)
    client = MqttTransport(quick(parse_url(broker.url), "client"), ("a/#",), rng=np.random.default_rng(0))
    next_event(client, Connected)
    assert broker.child is not None
    assert broker.child.process is not None
    broker.child.process.kill()
    broker.child.process.wait()
    next_event(client, Disconnected)
    assert not client.publish("a/b", b"nobody is there")
    assert "Connection refused" in next_event(client, Disconnected).reason
    broker.child.start(time.monotonic())
    next_event(client, Connected, skip=True)
    assert client.publish("a/b", b"here again")
    assert next_event(client, Incoming).payload == b"here again"
    client.close()
    broker.close()


def test_two_clients_of_one_name_are_told_what_it_most_likely_is(mosquitto: Broker) -> None:
    settings = quick(parse_url(mosquitto.url), "same-name")
    one, two = (MqttTransport(settings, ("same/#",), rng=np.random.default_rng(seed)) for seed in (1, 2))
    reasons: list[str] = []

    def said() -> bool:
        for client in (one, two):
            event = client.poll(0.02)
            if isinstance(event, Disconnected):
                reasons.append(event.reason)
        return any("does another client use the name 'same-name'" in reason for reason in reasons)

    until(said)
    assert "name" not in reasons[0], "one lost connection is no reason to suspect anybody"
    one.close()
    two.close()
