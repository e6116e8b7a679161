"""What each adversary of docs/security.md tries that no other test shows; that page names the test for each line."""

import ast
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.trust_settings import FoldSettings
from edge_agent.enrolment import enrol
from protocol.enrolment import MAX_FRAME
from protocol.layout import layout_of
from protocol.messages import Offer
from sparse.codecs import CodecSpec, encode_update
from tests.coordinator.simulation import BUFFERS, Simulation, named
from tests.trust.conftest import Guarded
from tests.trust.office import FLEET, Client, Office, issue
from tests.waiting import until

ROOT = Path(__file__).parents[2]
SECRET = b"the weights of a kitchen" * 40


@dataclass
class Tap:
    """Somebody on the line to a port of this machine. up, down: all bytes it saw. flip: after so many bytes upwards it
    changes one, once."""

    to: int
    flip: int | None = None
    up: bytearray = field(default_factory=bytearray)
    down: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.port: int = self._server.getsockname()[1]
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
                self._ends += [client, server]
                for ends in ((client, server, self.up), (server, client, self.down)):
                    thread = threading.Thread(target=self._carry, args=ends, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, sink: socket.socket, seen: bytearray) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                passed = bytearray(data)
                if seen is self.up and self.flip is not None and len(seen) + len(data) > self.flip:
                    passed[-1] ^= 1
                    self.flip = None
                seen += data
                sink.sendall(passed)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        for end in (self._server, *self._ends):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for end in (self._server, *self._ends):
            end.close()


@dataclass
class Line:
    """A device and the coordinator at a real broker, with somebody on the device's line."""

    tap: Tap
    device: Client
    coordinator: Client
    topic: str


@pytest.fixture
def line(guarded: Guarded, tmp_path: Path) -> Iterator[Line]:
    tap = Tap(guarded.address.port)
    own, topics = issue(guarded.authority, "pi-1", tmp_path), guarded.topics
    coordinator = Client(guarded.address, guarded.authority.coordinator, *topics.of_coordinator()).connect()
    device = Client(replace(guarded.address, port=tap.port), own, topics.device("pi-1", "down")).connect()
    yield Line(tap, device, coordinator, topics.device("pi-1", "up"))
    device.close()
    coordinator.close()
    tap.close()


@pytest.mark.real
def test_somebody_on_the_network_reads_nothing_of_an_update(line: Line) -> None:
    line.device.transport.publish(line.topic, SECRET)
    line.coordinator.until(lambda: (line.topic, SECRET) in line.coordinator.heard)
    assert len(line.tap.up) > len(SECRET)
    for seen in (line.tap.up, line.tap.down):
        assert SECRET[:24] not in seen
        assert line.topic.encode() not in seen


@pytest.mark.real
def test_somebody_on_the_network_who_changes_a_byte_ends_the_connection_and_changes_no_message(line: Line) -> None:
    line.tap.flip = len(line.tap.up) + 100
    line.device.transport.publish(line.topic, SECRET)
    line.device.until(lambda: line.device.lost)
    line.device.connect()
    # Of QoS 1: what was not confirmed is said again.
    line.device.transport.publish(line.topic, b"again")

    def there() -> bool:
        line.device.step(0.01)
        return (line.topic, b"again") in line.coordinator.heard

    line.coordinator.until(there)
    assert {payload for topic, payload in line.coordinator.heard if topic == line.topic} <= {SECRET, b"again"}


def test_somebody_on_the_network_learns_no_token_and_gains_nothing_by_repeating_an_enrolment(
    office: Office, tmp_path: Path
) -> None:
    tap = Tap(office.endpoint.port)
    try:
        token = office.token()
        enrol(f"127.0.0.1:{tap.port}", token, "kitchen-pi", tmp_path / "state")
        until(lambda: len(tap.up) > 1000, "both exchanges went by the tap")
        for seen in (tap.up, tap.down):
            assert token.secret not in seen
            assert token.secret.hex().encode() not in seen
        with socket.create_connection(("127.0.0.1", office.endpoint.port), timeout=10) as again:
            with suppress(OSError):
                again.sendall(tap.up)
            heard = b""
            with suppress(OSError):
                while more := again.recv(MAX_FRAME):
                    heard += more
        assert b"kitchen-pi" not in heard
        assert [row.device for row in office.trust.identities()] == ["kitchen-pi"]
        assert FLEET.encode() not in heard
    finally:
        tap.close()


def turned(fleet: Simulation, device: str) -> None:
    """A device that was taken over: it sends the same large step the wrong way in every round."""
    agent = fleet.agents[device]
    layout = layout_of(agent.bundle.manifest, "full")

    def mangle(offer: Offer, payload: bytes) -> tuple[Offer, bytes]:
        values, none = np.full(layout.n_parameters, -5.0, np.float32), np.zeros(layout.n_parameters, np.float32)
        rest = np.zeros(BUFFERS, np.float32)
        return named(offer, encode_update(values, rest, none, CodecSpec(), layout.digest)[0])

    agent.mangle = mangle


def model_of(folder: Path, fold: FoldSettings, liar: str | None) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    fleet = Simulation.make(folder, 7, count=6)
    fleet.kill()
    fleet.settings = replace(fleet.settings, fold=fold, rounds=replace(fleet.settings.rounds, devices=7))
    fleet.start()
    if liar is not None:
        turned(fleet, liar)
    fleet.finish()
    model = np.frombuffer(fleet.model(), "<f4").copy()
    fleet.store.close()
    return model


@pytest.mark.parametrize(
    "fold",
    [
        FoldSettings("multi-krum", byzantine=1),
        FoldSettings("multi-krum", byzantine=1, memory=0.9),
        FoldSettings("geometric-median", bucket=2),
    ],
    ids=["multi-krum", "multi-krum with memory", "geometric median of buckets"],
)
def test_a_device_that_was_taken_over_and_lies_in_every_round_does_not_turn_the_model(
    fold: FoldSettings, tmp_path: Path
) -> None:
    honest = model_of(tmp_path / "honest", fold, None)
    lied_to = model_of(tmp_path / "lied", fold, "dev-3")
    believed = model_of(tmp_path / "believed", FoldSettings(clip="none"), "dev-3")
    harm, without_defence = (float(np.linalg.norm(model - honest)) for model in (lied_to, believed))
    assert without_defence > 4 * harm


def test_every_test_that_the_page_on_security_names_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    there = {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    named_there = set(re.findall(r"`(test_[a-z0-9_]+)`", page))
    assert len(named_there) > 20
    assert named_there - there == set()
