"""Floods of the one port that takes strangers: a device that has a token gets in all the same, and the fleet trains."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from coordinator.enrolment import MAX_CONNECTIONS
from coordinator.places import Places, crowd_of
from protocol.tls import unverified_context
from tests.conftest import require_broker
from tests.real_fleet import RealFleet
from tests.trust.office import Office
from tests.waiting import until

HUNDREDS = 300


def connect(port: int, source: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))


def silent(port: int, source: str) -> socket.socket:
    return connect(port, source)


def half_a_handshake(port: int, source: str) -> socket.socket:
    """The beginning of a TLS record that is never ended."""
    connection = connect(port, source)
    connection.sendall(b"\x16\x03\x01\x02\x00\x01")
    return connection


def a_handshake_and_no_question(port: int, source: str) -> socket.socket:
    connection = connect(port, source)
    try:
        return unverified_context().wrap_socket(connection, server_hostname="any")
    except OSError:
        # It had to give way to a later one.
        return connection


@contextmanager
def flood(
    kind: Callable[[int, str], socket.socket], port: int, source: str = "127.0.0.1", *, again: bool = False
) -> Iterator[None]:
    """Hundreds of connections that stay open; again: and new ones for as long as it lasts."""
    stop = threading.Event()

    def hammer() -> None:
        while not stop.is_set():
            with suppress(OSError):
                held.append(kind(port, source))
            for old in held[:-HUNDREDS]:
                old.close()
            del held[:-HUNDREDS]

    with ExitStack() as stack:
        held = [kind(port, source) for _ in range(HUNDREDS)]
        thread = threading.Thread(target=hammer)
        if again:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            if again:
                thread.join(20)
            for connection in held:
                stack.callback(connection.close)


def client_hello() -> bytes:
    """The first message of a handshake, as it should be, of some 500 bytes."""
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        unverified_context().wrap_bio(into, out, server_hostname="any").do_handshake()
    return out.read()


def drip(connection: socket.socket, data: bytes) -> int:
    """Sends it byte by byte, some seconds long; how many bytes were left to say when it was ended, or 0."""
    connection.settimeout(0.02)
    for at, byte in enumerate(data):
        try:
            connection.sendall(bytes([byte]))
            if not connection.recv(1):
                return len(data) - at
        except TimeoutError:
            continue
        except OSError:
            return len(data) - at
    return 0


@pytest.mark.parametrize("kind", [silent, half_a_handshake, a_handshake_and_no_question])
def test_hundreds_of_connections_that_say_nothing_keep_no_device_from_enrolling(
    kind: Callable[[int, str], socket.socket], office: Office, tmp_path: Path
) -> None:
    with flood(kind, office.endpoint.port):
        started = time.monotonic()
        office.enrol("kitchen-pi", tmp_path / "state")
        assert time.monotonic() - started < 5.0
        assert threading.active_count() < MAX_CONNECTIONS + 10


def test_a_flood_without_end_from_elsewhere_keeps_no_device_from_enrolling(office: Office, tmp_path: Path) -> None:
    with flood(silent, office.endpoint.port, "127.0.0.2", again=True):
        for i in range(5):
            office.enrol(f"device-{i}", tmp_path / str(i))
    assert len(office.trust.identities()) == 5


def test_a_handshake_that_drips_ends_with_its_time_and_not_with_its_bytes(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte before each timeout would last for ever if time were counted by the read."""
    monkeypatch.setattr("coordinator.enrolment._LOOK_S", 0.05)
    monkeypatch.setattr(office.endpoint._places, "_longest_s", 0.3)
    with connect(office.endpoint.port, "127.0.0.1") as connection:
        assert drip(connection, client_hello()) > 50, "it went on until it was ended"
    until(lambda: len(office.endpoint._places) == 0, patience_s=10)


@pytest.mark.real
def test_a_flood_of_the_enrolment_port_stops_neither_rounds_nor_a_newcomer(tmp_path: Path) -> None:
    require_broker("mosquitto")
    fleet = RealFleet(tmp_path, "mosquitto", rounds=10_000, devices=2, enrols=True)
    try:
        fleet.start_coordinator()
        fleet.until(lambda: any(event["event"] == "listening" for event in fleet.events))
        (port,) = (event["enrolment"] for event in fleet.events if event["event"] == "listening")
        with flood(half_a_handshake, port, "127.0.0.2", again=True):
            for device in ("device-00", "device-01"):
                assert fleet.enrol(device).exit_code == 0
                fleet.start_agent(device)
            fleet.until(lambda: len(fleet.committed()) >= 3)
        log = (tmp_path / "logs" / "coordinator.log").read_text()
        assert log.count("enrolment: ") < 20, "what anybody can bring about fills no disk"
    finally:
        fleet.stop()


def pair(places: Places, peer: str, now: float) -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection that has a place, and the end that a test looks at first."""
    ours, theirs = socket.socketpair()
    place = places.take(ours, peer, now, patience_s=0.0)
    if place is not None:
        threading.Thread(target=_until_ended, args=(places, ours, place), daemon=True).start()
    return theirs, ours


def _until_ended(places: Places, ours: socket.socket, place: object) -> None:
    ours.recv(1)
    places.leave(place)  # type: ignore[arg-type]


def test_the_oldest_of_the_largest_crowd_gives_way_and_others_stay() -> None:
    places = Places(3, 60.0)
    quiet = pair(places, "10.0.0.1", 0.0)
    crowd = [pair(places, "10.0.0.2", 1.0), pair(places, "10.0.0.2", 2.0)]
    ours, theirs = socket.socketpair()
    newcomer = places.take(ours, "10.0.0.3", 3.0, patience_s=10.0)
    assert newcomer is not None
    crowd[0][0].settimeout(10)
    assert crowd[0][0].recv(1) == b"", "it was told to go"
    for still in (quiet[0], crowd[1][0]):
        still.setblocking(False)
        with pytest.raises(BlockingIOError):
            still.recv(1)
    places.end_late(61.5)
    until(lambda: len(places) == 2, patience_s=10)
    assert newcomer.handle.fileno() >= 0
    for end in (quiet, crowd[0], crowd[1]):
        end[0].close()
    until(lambda: len(places) == 1, patience_s=10)
    places.leave(newcomer)
    for end in (quiet, *crowd, (ours, theirs)):
        for one in end:
            one.close()


@pytest.mark.parametrize(
    ("peer", "crowd"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8::1:2:3:4", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
    ],
)
def test_addresses_that_one_machine_can_have_are_one_crowd(peer: str, crowd: str) -> None:
    assert crowd_of(peer) == crowd
