"""A broker and the links to it, in simulated time. A link that is cut loses what is under way, as QoS 1 over TCP does;
a hostile one also loses, repeats, delays and reorders single messages, as some brokers do.

Sessions are clean and as short as their connection, as those of protocol/mqtt.py. Either end of a broken connection may
notice late; the will is said when the broker does.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from protocol.transport import Connected, Disconnected, Event, Incoming, Will, matches
from tests.simulator.clock import Timeline
from tests.simulator.life import Life

# As protocol/mqtt.py retries.
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 5.0


@dataclass(frozen=True, slots=True)
class Weather:
    """How a network treats messages. delay_s: at the most, each way. loss, repeat, reorder: shares of messages."""

    delay_s: float = 0.05
    loss: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0

    @property
    def hostile(self) -> bool:
        return bool(self.loss or self.repeat or self.reorder)


FAIR = Weather()


class Session:
    """One connection of one client, as the broker has it. free_at: when the last message in a direction arrives."""

    def __init__(
        self, client: str, filters: tuple[str, ...], will: Will | None, transport: "SimulatedTransport"
    ) -> None:
        self.client, self.filters, self.will, self.transport = client, filters, will, transport
        self.open = True
        self.free_at = {"up": 0.0, "down": 0.0}


class Network:
    """The broker, and who reaches it. heard: told of every message that a client sends."""

    def __init__(self, timeline: Timeline, rng: Random, trace: Callable[[str], None]) -> None:
        self.timeline, self.rng, self.trace = timeline, rng, trace
        self.weather = FAIR
        self.heard: Callable[[str, str, bytes], None] = lambda client, topic, payload: None
        self._sessions: dict[str, Session] = {}
        self._retained: dict[str, bytes] = {}
        self._parted: set[str] = set()
        self._down = False

    # Faults

    def cut(self, client: str, broker_notices_s: float = 0.0, client_notices_s: float = 0.0) -> None:
        """Breaks a connection."""
        session = self._sessions.get(client)
        if session is None or not session.open:
            return
        self.trace(f"cut {client}")
        session.open = False
        self.timeline.after(broker_notices_s, lambda: self._bury(session))
        self.timeline.after(client_notices_s, lambda: session.transport.lose(session, "cut"))

    def part(self, client: str) -> None:
        """Lets nothing of a client through until `join`."""
        self._parted.add(client)
        self.cut(client, self.rng.uniform(0, 90), self.rng.uniform(0, 90))

    def join(self, client: str) -> None:
        self._parted.discard(client)

    def stop_broker(self, forgets: bool) -> None:
        """The broker dies, and says no will. forgets: what was retained, too."""
        self.trace(f"broker stops forgets={forgets}")
        self._down = True
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            if session.open:
                session.open = False
                session.transport.lose(session, "the broker is gone")
        if forgets:
            self._retained.clear()

    def start_broker(self) -> None:
        self.trace("broker starts")
        self._down = False

    # Clients

    def connect(self, client: str, transport: "SimulatedTransport") -> bool:
        """Whether the connection came about; the session before it, if any, is lost to its owner."""
        if self._down or client in self._parted:
            return False
        before = self._sessions.get(client)
        session = Session(client, transport.filters, transport.will, transport)
        self._sessions[client] = session
        transport.session = session
        self.trace(f"connect {client}")
        if before is not None:
            before.open = False
            self._bury(before)
            before.transport.lose(before, "another client has this name")
        self._carry(session, "down", Connected())
        for topic, payload in sorted(self._retained.items()):
            self._offer(session, topic, payload)
        return True

    def publish(self, session: Session, topic: str, payload: bytes, retain: bool) -> None:
        self.heard(session.client, topic, payload)
        self._carry(session, "up", Incoming(topic, payload), retain)

    def leave(self, session: Session) -> None:
        """The client says goodbye, or its process ends and the system closes the connection: no will, or a will."""
        session.will = None
        self.vanish(session)

    def vanish(self, session: Session) -> None:
        if session.open:
            session.open = False
            self._bury(session)

    # Inside

    def _bury(self, session: Session) -> None:
        if self._sessions.get(session.client) is session:
            del self._sessions[session.client]
        will, session.will = session.will, None
        if will is not None and not self._down:
            self._route(will.topic, will.payload, retain=True)

    def _carry(self, session: Session, way: str, event: Event, retain: bool = False) -> None:
        weather, rng = self.weather, self.rng
        arrival = self.timeline.now + rng.uniform(0.001, weather.delay_s)
        copies = 1
        if weather.hostile and isinstance(event, Incoming):
            if rng.random() < weather.loss:
                self.trace(f"lost {way} {session.client}")
                return
            copies += rng.random() < weather.repeat
            if rng.random() < weather.reorder:
                self._arrive_at(arrival + rng.uniform(0, 2.0), session, way, event, retain)
                copies -= 1
        for _ in range(copies):
            arrival = session.free_at[way] = max(arrival, session.free_at[way])
            self._arrive_at(arrival, session, way, event, retain)

    def _arrive_at(self, time: float, session: Session, way: str, event: Event, retain: bool) -> None:
        self.timeline.at(time, lambda: self._arrive(session, way, event, retain))

    def _arrive(self, session: Session, way: str, event: Event, retain: bool) -> None:
        if not session.open:
            return
        if way == "down":
            session.transport.take(session, event)
        elif isinstance(event, Incoming):
            self._route(event.topic, event.payload, retain)

    def _route(self, topic: str, payload: bytes, retain: bool) -> None:
        if retain:
            self._retained[topic] = payload
        for session in tuple(self._sessions.values()):
            self._offer(session, topic, payload)

    def _offer(self, session: Session, topic: str, payload: bytes) -> None:
        if any(matches(f, topic) for f in session.filters):
            self._carry(session, "down", Incoming(topic, payload))


class SimulatedTransport:
    """The `Transport` of one process. wake: called when there is something to poll."""

    def __init__(
        self,
        network: Network,
        client: str,
        filters: tuple[str, ...],
        will: Will | None,
        life: Life,
        wake: Callable[[], None],
    ) -> None:
        self.network, self.client, self.filters, self.will = network, client, filters, will
        self.life, self.wake = life, wake
        self.session: Session | None = None
        self.connected = False
        # Messages of devices, which no broker keeps.
        self.taken = 0
        self._inbox: deque[Event] = deque()
        self._failures = 0
        self._try()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        self.life.step(f"send {topic} {len(payload)}")
        session = self.session
        if session is None or not self.connected:
            return False
        if session.open:
            self.network.publish(session, topic, payload, retain)
        self.life.step("sent")
        return True

    def poll(self, timeout_s: float) -> Event | None:
        if not self._inbox:
            return None
        event = self._inbox.popleft()
        self.life.step(f"take {event.topic} {len(event.payload)}" if isinstance(event, Incoming) else f"take {event}")
        if isinstance(event, Connected | Disconnected):
            self.connected = isinstance(event, Connected)
        elif "/up" in event.topic:
            self.taken += 1
        return event

    def close(self) -> None:
        if self.session is not None:
            self.network.leave(self.session)

    @property
    def waiting(self) -> int:
        return len(self._inbox)

    # What the network does to it

    def take(self, session: Session, event: Event) -> None:
        if session is self.session and self.life.alive:
            if isinstance(event, Connected):
                self._failures = 0
            self._inbox.append(event)
            self.wake()

    def lose(self, session: Session, reason: str) -> None:
        """The connection is gone, with all that was not polled."""
        if session is self.session and self.life.alive:
            self.session = None
            self._inbox.clear()
            self._inbox.append(Disconnected(reason))
            self.wake()
            self._retry()

    def _retry(self) -> None:
        ceiling = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self.network.timeline.after(self.network.rng.uniform(0.0, ceiling), self._try)

    def _try(self) -> None:
        if self.life.alive and self.session is None and not self.network.connect(self.client, self):
            self._retry()
