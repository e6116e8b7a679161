"""MQTT as a transport: paho-mqtt carries the bytes, everything it does badly on its own is decided here.

Each connection is a `_Session`: one paho client and one thread that live and die with it. The thread only puts what
happens into one queue; the caller's thread publishes, acknowledges and, inside `poll`, decides when to connect again.
A lost connection costs the session: paho's own reconnecting (no jitter, an unbounded offline queue, stale
acknowledgements) is never used, and nothing of an old client can reach a new one.
"""

import queue
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from protocol.errors import SparsefleetError
from protocol.messages import MAX_MESSAGE_BYTES
from protocol.tls import Credentials, FleetContext, in_words, is_loopback, own_context
from protocol.transport import Connected, Disconnected, Event, Incoming, Will, matches

DEFAULT_PORT = 1883
DEFAULT_TLS_PORT = 8883
# Messages this side may have sent without the broker's acknowledgement; later ones wait inside paho, in order.
MAX_INFLIGHT = 64
# And how many may wait before `publish` refuses. Receivers ask for chunks in windows, so most of these are small.
MAX_OUTSTANDING = 1000
# Messages taken from the broker and not yet polled. A good broker stops at its own window of unacknowledged messages;
# one without a window (amqtt), or with messages of QoS 0, would fill the memory. At this bound (8 MiB of chunks) the
# thread stops reading, so that TCP holds the sender back.
MAX_UNREAD = 128
# How long one connection attempt may take, from the first packet to the last subscription's confirmation.
SETUP_S = 30.0
# A connection that was lost sooner counts as one more failure: two clients of one name that throw each other out, or a
# broker that takes and drops everyone, must not be hammered at the first retry's pace.
STABLE_S = 10.0
# So many of those in a row, and the operator is told what it most likely is. A broker that dies so often is rarer.
SUSPICIOUS = 4
# What `close` grants the thread to send the last packets; it is a daemon thread, so that no exit waits longer.
JOIN_S = 2.0


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """Where a broker listens, and whether TLS is spoken there."""

    host: str
    port: int
    tls: bool = False

    @property
    def url(self) -> str:
        scheme, host = "mqtts" if self.tls else "mqtt", f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}"

    @property
    def exposed(self) -> bool:
        """Whether anybody on the way can read and write what is said."""
        return not self.tls and not is_loopback(self.host)


def parse_url(url: str) -> BrokerAddress:
    """The address in mqtts://host[:port] or mqtt://host[:port]. Raises ValueError that names what is accepted."""
    # Who wrote a password there by mistake must not find it in a log.
    shown = re.sub(r"//.*@", "//...@", url)
    accepted = f"{shown!r} must be mqtts://host:port, or mqtt://host:port without encryption"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{accepted} ({error})") from None
    tls = parts.scheme == "mqtts"
    if parts.scheme not in ("mqtt", "mqtts") or not host or not all(0 < len(label) <= 63 for label in host.split(".")):
        raise ValueError(accepted)
    if parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{accepted}, without a user name or path")
    if port == 0:
        raise ValueError(f"{accepted}; port 0 cannot be connected to")
    return BrokerAddress(host, port or (DEFAULT_TLS_PORT if tls else DEFAULT_PORT), tls)


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listened on a moment ago."""
    with socket.create_server((host, 0)) as server:
        return int(server.getsockname()[1])


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """How one client connects. Retries wait a random time between 0 and a ceiling that doubles up to the longest.

    credentials: who we are to a broker that speaks TLS; read anew for each connection, so that they may be renewed.
    dispensable: filters without which a connection is still of use, where a broker refuses them.
    """

    address: BrokerAddress
    client_id: str
    keepalive_s: int = 60
    first_retry_s: float = 0.5
    longest_retry_s: float = 60.0
    credentials: Credentials | None = None
    dispensable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.address.tls != (self.credentials is not None):
            raise ValueError(f"credentials: are for mqtts:// and needed there; the address is {self.address.url}")
        if not self.client_id:
            raise ValueError("client_id: must not be empty")
        if not 5 <= self.keepalive_s <= 65535:
            raise ValueError(f"keepalive_s: {self.keepalive_s} is outside 5..65535")
        if not 0 < self.first_retry_s <= self.longest_retry_s:
            raise ValueError("first_retry_s: must be positive and not above longest_retry_s")


class MqttTransport:
    """The `Transport` over one MQTT 3.1.1 broker, QoS 1, clean session. The first `poll` connects."""

    def __init__(
        self,
        settings: MqttSettings,
        filters: tuple[str, ...],
        will: Will | Callable[[], Will] | None = None,
        *,
        rng: np.random.Generator,
    ) -> None:
        self._settings, self._filters, self._will, self._rng = settings, filters, will, rng
        self._session: _Session | None = None
        self._connected_at: float | None = None
        self._failures = self._short_lived = 0
        self._retry_at = 0.0
        self._give_up_at = 0.0
        self._unacknowledged: int | None = None
        self._closed = False
        self._woken = threading.Event()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """See `Transport.publish`. Too much is MAX_OUTSTANDING messages."""
        assert len(payload) <= MAX_MESSAGE_BYTES, f"{len(payload)} bytes are too many for one message"
        if self._session is None or self._connected_at is None:
            return False
        return self._session.client.publish(topic, payload, qos=1, retain=retain).rc == paho.MQTT_ERR_SUCCESS

    def poll(self, timeout_s: float) -> Event | None:
        """See `Transport.poll`. Also acknowledges the message returned before, and connects when it is time to."""
        if self._closed:
            return None
        self._acknowledge()
        deadline = time.monotonic() + timeout_s
        while True:
            now = time.monotonic()
            if self._session is None and now >= self._retry_at:
                will = self._will() if callable(self._will) else self._will
                self._session = _Session(self._settings, self._filters, will)
                self._give_up_at = now + SETUP_S
            elif self._session is not None and self._connected_at is None and now >= self._give_up_at:
                return self._lost(f"no answer from {self._settings.address.url} within {SETUP_S:.0f} s", now)
            event = self._next(min(deadline, self._wake_at()) - now)
            if event is not None or self._woken.is_set() or time.monotonic() >= deadline:
                self._woken.clear()
                return event

    def wake(self) -> None:
        """Has `poll` return at once, now or when it is called next. From any thread."""
        # In this order: whoever polls sets the session first, and looks for the flag then.
        self._woken.set()
        session = self._session
        if session is not None:
            session.nudge()

    def close(self) -> None:
        """Leaves without the will, once what was published is written to the socket, within JOIN_S."""
        self._closed = True
        if self._session is not None:
            self._acknowledge()
            self._session.leave()
            self._session.join(JOIN_S)
            self._session, self._connected_at = None, None

    def _wake_at(self) -> float:
        """When `poll` has something to do of its own."""
        if self._session is None:
            return self._retry_at
        return self._give_up_at if self._connected_at is None else float("inf")

    def _next(self, wait_s: float) -> Event | None:
        if self._session is None:
            self._woken.wait(max(0.0, wait_s))
            return None
        try:
            happened = self._session.events.get(timeout=0.0 if self._woken.is_set() else max(wait_s, 0.0))
        except queue.Empty:
            return None
        match happened:
            case _Arrived(event, mid):
                self._unacknowledged = mid
                return event
            case Connected():
                self._connected_at = time.monotonic()
                return happened
            case Disconnected(reason):
                return self._lost(reason, time.monotonic())
            case _Nudge():
                return None

    def _lost(self, reason: str, now: float) -> Disconnected:
        """Drops the session with all that is left in its queue, and sets the time of the next attempt."""
        assert self._session is not None
        self._session.leave()
        if self._connected_at is not None and now - self._connected_at >= STABLE_S:
            self._failures = self._short_lived = 0
        elif self._connected_at is not None:
            self._short_lived += 1
            if self._short_lived >= SUSPICIOUS:
                reason += (
                    f"; lost within {STABLE_S:.0f} s of connecting {self._short_lived} times in a row: does another "
                    f"client use the name {self._settings.client_id!r}? Each needs one of its own"
                )
        ceiling = min(self._settings.longest_retry_s, self._settings.first_retry_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        self._retry_at = now + float(self._rng.uniform(0.0, ceiling))
        self._session, self._connected_at, self._unacknowledged = None, None, None
        return Disconnected(reason)

    def _acknowledge(self) -> None:
        if self._session is not None and self._unacknowledged is not None:
            self._session.client.ack(self._unacknowledged, 1)
        self._unacknowledged = None


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A message and the packet number to acknowledge it by; None for QoS 0."""

    event: Incoming
    mid: int | None


class _Nudge:
    """Nothing happened; whoever polls is to look elsewhere."""


class _Session:
    """One connection attempt and, if it succeeds, one connection. Its queue is its own: whoever drops the session drops
    everything it might still say. The last thing in the queue is always Disconnected."""

    def __init__(self, settings: MqttSettings, filters: tuple[str, ...], will: Will | None) -> None:
        self.events: queue.Queue[_Arrived | Connected | Disconnected | _Nudge] = queue.Queue(MAX_UNREAD)
        self.client = _make_client(settings, will)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = self._on_subscribe
        self.client.on_message = self._on_message
        self._settings, self._filters = settings, filters
        self._left = threading.Event()
        self._ready = self._welcome = False
        self._tls: FleetContext | None = None
        # What arrived before the subscriptions were confirmed (retained messages, with some brokers).
        self._early: list[_Arrived] = []
        self._reason = ""
        self._thread = threading.Thread(target=self._run, name=f"mqtt-{settings.client_id}", daemon=True)
        self._thread.start()

    def nudge(self) -> None:
        """Ends a wait for the queue. One that is full ends it by itself."""
        with suppress(queue.Full):
            self.events.put_nowait(_Nudge())

    def leave(self) -> None:
        """Asks the broker to forget the will and the thread to end. Nothing more is read from the queue."""
        self._left.set()
        self.client.disconnect()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        address = self._settings.address
        # paho wakes at once for traffic in both directions; this only paces its look at the keep-alive, which with a
        # quarter is sent well before the broker's limit of one and a half: 4 wake-ups a minute at 60 s, not paho's 60.
        tick_s = self._settings.keepalive_s / 4
        try:
            if self._settings.credentials is not None:
                self._tls = own_context(self._settings.credentials)
                self.client.tls_set_context(self._tls)
            self.client.connect(address.host, address.port, self._settings.keepalive_s)
            # A session left while it connected must not introduce itself: a will would follow.
            code = paho.MQTT_ERR_NO_CONN if self._left.is_set() else paho.MQTT_ERR_SUCCESS
            while code == paho.MQTT_ERR_SUCCESS:
                code = self.client.loop(tick_s)
            self._reason = self._reason or self._why_lost(paho.error_string(code))
        except (OSError, UnicodeError, SparsefleetError) as error:
            said = in_words(error) if isinstance(error, OSError) else error
            self._reason = self._reason or f"{address.url}: {said}"
            if self._tls is not None:
                self._tls.close()
        finally:
            # Also after an exception nobody foresaw: whoever polls must learn that this thread is gone.
            self._put(Disconnected(self._reason or "the MQTT client failed"))
            self.client.on_connect = self.client.on_subscribe = self.client.on_message = None

    def _why_lost(self, said: str) -> str:
        """With TLS a broker says what it has against a certificate after the handshake, and its word may be lost with
        the connection."""
        if self._tls is None:
            return said
        if self._tls.alert:
            return f"{self._settings.address.url}: {self._tls.alert}"
        if not self._welcome:
            said += "; it was the broker that ended it: has this certificate been revoked, or has it expired?"
        return said

    def _put(self, happened: _Arrived | Connected | Disconnected) -> None:
        while not self._left.is_set():
            try:
                self.events.put(happened, timeout=1.0)
                return
            except queue.Full:
                continue

    def _on_connect(self, client: paho.Client, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._welcome = not reason.is_failure
        if reason.is_failure:
            self._reason = f"{self._settings.address.url}: the broker refused the connection ({reason})"
        elif self._filters:
            client.subscribe([(f, 1) for f in self._filters])
        else:
            self._become_ready()

    def _on_subscribe(self, client: paho.Client, userdata: Any, mid: int, reasons: Any, properties: Any) -> None:
        refused = [f for f, reason in zip(self._filters, reasons, strict=False) if reason.is_failure]
        if set(refused) - set(self._settings.dispensable) or len(reasons) != len(self._filters):
            self._reason = f"{self._settings.address.url}: the broker refused the subscription to {refused}"
            client.disconnect()
        else:
            self._become_ready(tuple(refused))

    def _become_ready(self, refused: tuple[str, ...] = ()) -> None:
        self._ready = True
        self._put(Connected(refused))
        for arrived in self._early:
            self._put(arrived)
        self._early.clear()

    def _on_message(self, client: paho.Client, userdata: Any, message: paho.MQTTMessage) -> None:
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = "not/unicode"
        if not any(matches(f, topic) for f in self._filters):
            # amqtt greets every client with whatever is retained for anyone.
            client.ack(message.mid, message.qos)
            return
        arrived = _Arrived(Incoming(topic, bytes(message.payload)), message.mid if message.qos else None)
        if self._ready:
            self._put(arrived)
        elif len(self._early) < MAX_UNREAD:
            self._early.append(arrived)
        else:
            self._reason = f"over {MAX_UNREAD} messages before the subscriptions were confirmed"
            client.disconnect()


def _make_client(settings: MqttSettings, will: Will | None) -> paho.Client:
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=settings.client_id,
        clean_session=True,
        protocol=paho.MQTTv311,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.max_inflight_messages_set(MAX_INFLIGHT)
    client.max_queued_messages_set(MAX_OUTSTANDING)
    client.connect_timeout = SETUP_S / 2
    if will is not None:
        client.will_set(will.topic, will.payload, qos=1, retain=True)
    client.on_socket_open = _send_at_once
    # Having this callback, paho leaves all writing to the thread that runs its loop; without it, and without a thread
    # of paho's own, `publish` would write to the socket from the caller's thread, into the middle of other packets.
    client.on_socket_register_write = _written_by_the_loop
    return client


def _send_at_once(client: paho.Client, userdata: Any, sock: Any) -> None:
    # Nagle's algorithm would hold a small message back until the one before is acknowledged by TCP, up to 40 ms.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _written_by_the_loop(client: paho.Client, userdata: Any, sock: Any) -> None:
    pass
