"""How devices reach the coordinator, and which of them: the broker, the endpoint that enrols, and who is heard."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.authority import COORDINATOR
from coordinator.broker import Access, Broker, start_broker
from coordinator.enrolment import Desk, Endpoint
from coordinator.fleet_keys import open_keys
from coordinator.seals import Seals
from coordinator.sentry import Sentry
from coordinator.settings import Settings
from coordinator.trust import Admission, authority_and_trust
from protocol.errors import Rejection
from protocol.mqtt import free_port, parse_url
from protocol.tls import Credentials, is_loopback
from protocol.topics import Topics

log = logging.getLogger("coordinator")


@dataclass(frozen=True, slots=True)
class Gate:
    """The broker in use; and where it knows devices by their certificates, ours, and all else that goes with it."""

    broker: Broker
    credentials: Credentials | None = None
    enrolment_port: int | None = None
    admission: Admission | None = None
    sentry: Sentry | None = None
    seals: Seals | None = None

    def admit(self, device: str) -> Rejection | None:
        """Why a device is not heard now. Without identities everybody is."""
        return None if self.admission is None else self.admission(device)

    def check(self, now: float) -> None:
        """Keeps a private broker alive and carries revocations out; for the daemon's loop, with a monotonic clock."""
        self.broker.check(now)
        if self.sentry is not None:
            self.sentry.check()


@contextmanager
def open_gate(settings: Settings, broker_state: Path) -> Iterator[Gate]:
    """Starts what the settings ask for, and ends it afterwards. Raises ConfigurationError."""
    wanted = settings.broker
    port = wanted.port or free_port(wanted.host)
    with ExitStack() as stack:
        if not wanted.wants_tls:
            gate = Gate(start_broker(wanted.url, port, broker_state, wanted.host))
            stack.callback(gate.broker.close)
        else:
            gate = _open_trusted(settings, port, broker_state, stack)
        _warn(settings, gate)
        yield gate


def _open_trusted(settings: Settings, port: int, broker_state: Path, stack: ExitStack) -> Gate:
    wanted, trust_folder = settings.broker, Path(settings.trust.folder)
    authority, trust = authority_and_trust(trust_folder, time.time())
    # Before the broker reads it: what was revoked while we were away.
    authority.write_revoked(trust.revoked(), time.time())
    access = Access(authority.broker, Topics(settings.fleet).root, COORDINATOR)
    broker = start_broker(wanted.url, port, broker_state, wanted.host, access)
    stack.callback(broker.close)
    if not parse_url(broker.url).tls:
        # There is no mosquitto here, and the broker that took its place knows no identities.
        return Gate(broker)
    address = f"mqtts://:{port}" if wanted.private else broker.url
    keys = open_keys(trust_folder, settings.fleet, time.time())
    if not settings.trust.require_seals:
        log.warning("trust.require_seals = false: whoever runs the broker can speak as any device")
    seals = Seals(keys, trust, time.time, required=settings.trust.require_seals)
    stack.callback(seals.close)
    days = settings.trust.certificate_days
    desk = Desk(authority, trust, settings.fleet, address, days, time.time, seals.enrolment)
    endpoint = Endpoint(desk, settings.trust.host or wanted.host, settings.trust.port)
    stack.callback(endpoint.close)
    admission, sentry = Admission(trust, time.time), Sentry(authority, trust, broker, time.time)
    stack.callback(admission.close)
    stack.callback(sentry.close)
    return Gate(broker, authority.coordinator, endpoint.port, admission, sentry, seals)


def _warn(settings: Settings, gate: Gate) -> None:
    """At every start: nobody should forget that a fleet is open."""
    wanted, address = settings.broker, parse_url(gate.broker.url)
    if address.tls:
        return
    host = wanted.host if wanted.private else address.host
    if not is_loopback(host):
        log.warning(
            'broker.plain = "%s": %s is open to whoever reaches it. Everybody there can read the model, send updates '
            "in the name of any device, and give tasks to all; leave plain out to need certificates",
            wanted.plain,
            host,
        )
    elif wanted.wants_tls:
        log.warning("no mosquitto 2.0 is installed: plain, on this machine only, without identities")
