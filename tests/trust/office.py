"""A fleet's CA with its endpoint, in the test's own process, on the test's clock; and clients by certificate."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from coordinator.authority import Authority, Certificate, to_pem
from coordinator.enrolment import Desk, Endpoint
from coordinator.fleet_keys import open_keys
from coordinator.trust import Trust
from edge_agent.enrolment import enrol
from edge_agent.identity import Identity, roots_pem
from protocol.keys import new_key, signing_request
from protocol.mqtt import BrokerAddress, MqttSettings, MqttTransport
from protocol.private_files import write_private
from protocol.tls import Credentials
from protocol.token import Token
from protocol.transport import Connected, Disconnected, Event, Incoming

FLEET = "home"


@dataclass
class Office:
    """The coordinator's side of enrolment. `now_s` is its clock, in Unix seconds."""

    folder: Path
    now_s: float = field(default_factory=time.time)
    days: float = 30.0

    def __post_init__(self) -> None:
        self.authority = Authority(self.folder, self.now_s)
        self.trust = Trust(self.folder)
        self.keys = open_keys(self.folder, FLEET, self.now_s)
        desk = Desk(self.authority, self.trust, FLEET, "mqtts://:8883", self.days, lambda: self.now_s, self.rings)
        self.endpoint = Endpoint(desk, "127.0.0.1", 0)

    def rings(self) -> tuple[int, tuple[bytes, ...]]:
        return self.keys.after(self.keys.ring.version - 1)

    @property
    def url(self) -> str:
        return f"127.0.0.1:{self.endpoint.port}"

    def token(self, ttl_s: float = 3600.0, device: str | None = None) -> Token:
        return self.trust.make_tokens(self.authority.fingerprint, 1, ttl_s, self.now_s, device)[0]

    def enrol(self, device: str, state: Path, token: Token | None = None) -> Identity:
        return enrol(self.url, token or self.token(), device, state)[0]

    def close(self) -> None:
        self.endpoint.close()


def issue(
    authority: Authority, name: str, folder: Path, *, at_s: float | None = None, days: float = 30.0
) -> Credentials:
    """A certificate straight from a CA, as files."""
    key = new_key()
    issued = authority.issue(name, signing_request(key, name), time.time() if at_s is None else at_s, days)
    assert isinstance(issued, Certificate)
    own = Credentials(folder / f"{name}.roots", folder / f"{name}.pem", folder / f"{name}.pem")
    write_private(own.roots, roots_pem(authority.roots).encode())
    write_private(own.key, key + to_pem(issued.der))
    return own


class Client:
    """A client of a broker by certificate, driven by hand; `heard` is all that it was sent."""

    def __init__(self, address: BrokerAddress, own: Credentials, *filters: str) -> None:
        settings = MqttSettings(address, "any", keepalive_s=5, first_retry_s=0.01, longest_retry_s=0.1, credentials=own)
        self.transport = MqttTransport(settings, filters, rng=np.random.default_rng(0))
        self.heard: list[tuple[str, bytes]] = []
        self.lost: list[str] = []
        self.connected = False

    def step(self, timeout_s: float = 0.02) -> Event | None:
        event = self.transport.poll(timeout_s)
        if isinstance(event, Incoming):
            self.heard.append((event.topic, event.payload))
        self.connected = isinstance(event, Connected) or (self.connected and not isinstance(event, Disconnected))
        if isinstance(event, Disconnected):
            self.lost.append(event.reason)
        return event

    def until(self, reached: Callable[[], object], patience_s: float = 20.0) -> None:
        end = time.monotonic() + patience_s
        while not reached():
            assert time.monotonic() < end, f"in vain; heard {self.heard}, lost {self.lost}"
            self.step()

    def connect(self) -> "Client":
        self.until(lambda: self.connected)
        return self

    def close(self) -> None:
        self.transport.close()
