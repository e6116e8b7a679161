"""A real mosquitto with real certificates, and those whom it must keep out, or to their own topics."""

import os
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator.authority import Authority, Certificate, to_pem
from coordinator.broker import start_broker
from coordinator.sentry import Sentry
from coordinator.trust import Trust
from protocol.errors import ConfigurationError
from protocol.keys import new_key, signing_request
from protocol.mqtt import BrokerAddress, MqttSettings, MqttTransport, free_port
from protocol.private_files import write_private
from protocol.tls import Credentials, client_context
from protocol.transport import Disconnected
from tests.trust.conftest import Guarded
from tests.trust.office import FLEET, Client, issue
from tests.waiting import until

pytestmark = pytest.mark.real
DAY_S = 86400.0


@pytest.fixture
def clients(guarded: Guarded) -> Iterator["Clients"]:
    made = Clients(guarded)
    yield made
    for client in made.made:
        client.close()


class Clients:
    """Connected clients of one broker."""

    def __init__(self, guarded: Guarded) -> None:
        self.guarded, self.made = guarded, list[Client]()

    def connect(self, own: Credentials, *filters: str) -> Client:
        client = Client(self.guarded.address, own, *filters)
        self.made.append(client)
        return client.connect()

    def device(self, name: str, folder: Path, *filters: str) -> Client:
        return self.connect(issue(self.guarded.authority, name, folder), *filters)

    def coordinator(self) -> Client:
        return self.connect(self.guarded.authority.coordinator, *self.guarded.topics.of_coordinator())


def refused(address: BrokerAddress, own: Credentials) -> str:
    """Why a client is not let in."""
    client = Client(address, own, "sf/#")
    try:
        client.until(lambda: client.lost)
        return client.lost[0]
    finally:
        client.close()


def test_a_device_and_the_coordinator_talk_over_mtls(clients: Clients, tmp_path: Path) -> None:
    topics, coordinator = clients.guarded.topics, clients.coordinator()
    device = clients.device("pi-1", tmp_path, *topics.of_agent("pi-1"))
    for channel in ("state", "up", "up/blob"):
        assert device.transport.publish(topics.device("pi-1", channel), channel.encode())
    coordinator.until(lambda: len(coordinator.heard) == 3)
    assert {topic.rpartition("pi-1/")[2] for topic, _ in coordinator.heard} == {"state", "up", "up/blob"}
    told = [topics.device("pi-1", "down"), topics.device("pi-1", "down/blob")]
    told += [topics.everyone("notice"), topics.everyone("coordinator")]
    for topic in told:
        assert coordinator.transport.publish(topic, b"said")
    device.until(lambda: {topic for topic, _ in device.heard} >= set(told))


@pytest.mark.parametrize("channel", ["state", "up", "up/blob", "down", "down/blob"])
def test_a_device_that_publishes_as_another_is_not_heard(channel: str, clients: Clients, tmp_path: Path) -> None:
    topics = clients.guarded.topics
    victim = clients.device("victim", tmp_path, *topics.of_agent("victim"))
    coordinator = clients.coordinator()
    thief = clients.device("thief", tmp_path)
    assert thief.transport.publish(topics.device("victim", channel), b"forged", retain=True)  # type: ignore[arg-type]
    # Only what comes after on the same connection proves that the first was dropped.
    assert thief.transport.publish(topics.device("thief", "up"), b"honest")
    coordinator.until(lambda: coordinator.heard)
    victim.step(0.1)
    assert [payload for _, payload in coordinator.heard] == [b"honest"]
    assert not victim.heard


@pytest.mark.parametrize("channel", ["notice", "coordinator"])
def test_a_device_that_speaks_to_everyone_is_not_heard(channel: str, clients: Clients, tmp_path: Path) -> None:
    topics = clients.guarded.topics
    other = clients.device("other", tmp_path, *topics.of_agent("other"))
    coordinator = clients.coordinator()
    thief = clients.device("thief", tmp_path)
    assert thief.transport.publish(topics.everyone(channel), b"forged")  # type: ignore[arg-type]
    assert thief.transport.publish(topics.device("thief", "up"), b"honest")
    coordinator.until(lambda: coordinator.heard)
    other.step(0.1)
    assert [payload for _, payload in coordinator.heard] == [b"honest"]
    assert not other.heard


def test_a_device_that_gives_itself_tasks_is_not_heard(clients: Clients, tmp_path: Path) -> None:
    topics, coordinator = clients.guarded.topics, clients.coordinator()
    device = clients.device("pi-1", tmp_path, *topics.of_agent("pi-1"))
    assert device.transport.publish(topics.device("pi-1", "down"), b"forged")
    assert device.transport.publish(topics.device("pi-1", "up"), b"honest")
    coordinator.until(lambda: coordinator.heard)
    device.step(0.1)
    assert not device.heard


def test_a_device_that_subscribes_as_another_hears_nothing(clients: Clients, tmp_path: Path) -> None:
    topics, coordinator = clients.guarded.topics, clients.coordinator()
    victim = clients.device("victim", tmp_path, *topics.of_agent("victim"))
    spy = clients.device("spy", tmp_path, "#", "sf/#", f"{topics.root}/victim/#", *topics.of_agent("victim"))
    channels = ("state", "up", "up/blob")
    for channel in channels:
        assert victim.transport.publish(topics.device("victim", channel), b"private", retain=True)  # type: ignore[arg-type]
    coordinator.until(lambda: len(coordinator.heard) == len(channels))
    for channel in ("down", "down/blob"):
        assert coordinator.transport.publish(topics.device("victim", channel), b"private")  # type: ignore[arg-type]
    victim.until(lambda: len(victim.heard) == 2)
    assert coordinator.transport.publish(topics.everyone("notice"), b"public")
    spy.until(lambda: spy.heard)
    assert {payload for _, payload in spy.heard} == {b"public"}
    # Nor what is retained, when it comes later.
    late = clients.device("late-spy", tmp_path, "#")
    assert coordinator.transport.publish(topics.everyone("notice"), b"public")
    late.until(lambda: late.heard)
    assert {payload for _, payload in late.heard} == {b"public"}


def test_a_device_without_a_certificate_is_not_let_in(guarded: Guarded) -> None:
    context = client_context(guarded.authority.broker.roots.read_text())
    with (
        socket.create_connection((guarded.address.host, guarded.address.port), timeout=10) as connection,
        context.wrap_socket(connection) as secured,
    ):
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            secured.recv(1)
        assert "takes nobody without a certificate" in context.alert


def test_a_device_that_speaks_no_tls_is_not_let_in(guarded: Guarded) -> None:
    plain = MqttSettings(BrokerAddress(guarded.address.host, guarded.address.port), "client")
    transport = MqttTransport(plain, ("sf/#",), rng=np.random.default_rng(0))
    try:
        until(lambda: isinstance(transport.poll(0.05), Disconnected))
    finally:
        transport.close()


def test_a_device_of_another_fleet_is_not_let_in(guarded: Guarded, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other", time.time())
    own = issue(other, "pi-1", tmp_path)
    # It trusts our root, as somebody would who wants in; and does not, as who went to the wrong broker.
    assert "the server is not of this fleet" in refused(guarded.address, own)
    spoofed = Credentials(guarded.authority.broker.roots, own.certificate, own.key)
    assert "certificate" in refused(guarded.address, spoofed)


def test_a_device_with_an_expired_certificate_is_not_let_in(guarded: Guarded, tmp_path: Path) -> None:
    own = issue(guarded.authority, "pi-1", tmp_path, at_s=time.time() - 40 * DAY_S)
    assert "expired" in refused(guarded.address, own)


def test_a_broker_with_another_fleets_certificate_is_told_nothing(guarded: Guarded, tmp_path: Path) -> None:
    own = issue(guarded.authority, "pi-1", tmp_path)
    stranger = Credentials(Authority(tmp_path / "other", time.time()).broker.roots, own.certificate, own.key)
    assert "the server is not of this fleet" in refused(guarded.address, stranger)


def test_a_revoked_device_loses_its_session_and_does_not_come_back(
    clients: Clients, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    guarded, trust = clients.guarded, Trust(tmp_path / "trust")
    own = Credentials(guarded.authority.broker.roots, tmp_path / "pi-1.pem", tmp_path / "pi-1.pem")
    enrol_by_hand(guarded.authority, trust, "pi-1", tmp_path)
    enrol_by_hand(guarded.authority, trust, "pi-2", tmp_path)
    revoked = clients.connect(own)
    kept = clients.connect(Credentials(own.roots, tmp_path / "pi-2.pem", tmp_path / "pi-2.pem"))
    sentry = Sentry(guarded.authority, trust, guarded.broker, time.time)
    caplog.set_level("INFO")
    try:
        sentry.check()
        trust.revoke("pi-1", time.time())
        sentry.check()
        assert "revoked device=pi-1 its session was ended" in caplog.text
        revoked.until(lambda: len(revoked.lost) >= 2)
        assert "revoked" in revoked.lost[1]
        assert "revoked" in refused(guarded.address, own)
        kept.step(0.05)
        assert not kept.lost
        assert not list((tmp_path / "trust").glob("stand-in*")), "no key of a device's name is left behind"
    finally:
        sentry.close()


def test_a_revoked_device_does_not_come_back_with_a_session_of_before(guarded: Guarded, tmp_path: Path) -> None:
    """TLS may take up an old session without looking at the certificate again."""
    trust = Trust(tmp_path / "trust")
    enrol_by_hand(guarded.authority, trust, "pi-1", tmp_path)
    context = client_context(guarded.authority.broker.roots.read_text())
    context.load_cert_chain(tmp_path / "pi-1.pem")
    hello = bytes([0x10, 12, 0, 4]) + b"MQTT" + bytes([4, 2, 0, 60, 0, 0])

    def connect(session: ssl.SSLSession | None) -> tuple[bytes, ssl.SSLSession | None]:
        with (
            socket.create_connection((guarded.address.host, guarded.address.port), timeout=10) as connection,
            context.wrap_socket(connection, session=session) as secured,
        ):
            secured.sendall(hello)
            return secured.recv(4), secured.session

    welcome, session = connect(None)
    assert welcome == bytes([0x20, 2, 0, 0])
    trust.revoke("pi-1", time.time())
    guarded.authority.write_revoked(trust.revoked(), time.time())
    guarded.broker.reload()

    def shut_out() -> bool:
        try:
            return connect(session)[0] != welcome
        except OSError:
            return True

    until(shut_out)


def enrol_by_hand(authority: Authority, trust: Trust, device: str, folder: Path) -> None:
    key, now_s = new_key(), time.time()
    request = signing_request(key, device)
    token = trust.make_tokens(authority.fingerprint, 1, 60.0, now_s)[0]
    issued = trust.redeem(token.secret, device, now_s, lambda name: authority.issue(name, request, now_s, 1.0))
    assert isinstance(issued, Certificate)
    write_private(folder / f"{device}.pem", key + to_pem(issued.der))


def test_the_embedded_broker_listens_on_this_machine_only(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"0.0.0.0 is open to other machines, and the embedded broker knows"):
        start_broker("embedded", free_port(), tmp_path, "0.0.0.0")


def test_what_the_broker_reads_is_readable_by_its_owner_only(guarded: Guarded, tmp_path: Path) -> None:
    for path in (*(tmp_path / "trust").iterdir(), tmp_path / "broker" / "acl"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert FLEET in (tmp_path / "broker" / "acl").read_text()
    assert os.access(guarded.authority.broker.key, os.R_OK)
