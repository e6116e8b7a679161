"""A whole fleet under seals, at the real broker: whose operator speaks as the coordinator, and whose keys change."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.envelope import Envelope, encode
from protocol.messages import CoordinatorState, Receipt, TaskReport, Withdraw
from protocol.mqtt import parse_url
from protocol.tls import Credentials
from protocol.topics import Topics
from tests.conftest import require_broker
from tests.real_fleet import RealFleet
from tests.trust.office import Client

pytestmark = pytest.mark.real

DEVICE = "device-00"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RealFleet]:
    require_broker("mosquitto")
    made = RealFleet(tmp_path, "mosquitto", rounds=1000, devices=2, enrols=True)
    made.start()
    yield made
    made.stop()


def log_of(fleet: RealFleet, name: str) -> str:
    return (fleet.folder / "logs" / f"{name}.log").read_text()


def operator(fleet: RealFleet) -> Client:
    """Whom the broker lets say anything to anybody, as who runs it may."""
    trust = fleet.folder / "trust"
    own = Credentials(trust / "root.pem", trust / "coordinator.pem", trust / "coordinator.key")
    return Client(parse_url(f"mqtts://127.0.0.1:{fleet.port}"), own)


def test_a_broker_operator_is_heard_by_nobody_and_keys_rotate_while_the_fleet_trains(fleet: RealFleet) -> None:
    fleet.until(lambda: len(fleet.committed()) >= 1)
    topics, forger = Topics(fleet.name), operator(fleet)
    # It has the coordinator's name at the broker, so that the coordinator comes back when it has gone.
    forger.connect()
    for topic, body in (
        (topics.device(DEVICE, "down"), Withdraw("r/1", "forged")),
        (topics.device(DEVICE, "down"), Receipt(bytes(32), "r/1", "accepted")),
        (topics.everyone("coordinator"), CoordinatorState(99, accepting=True, run="forged")),
        (topics.device(DEVICE, "up"), TaskReport("r/1", "failed")),
    ):
        assert forger.transport.publish(topic, encode(Envelope(99, 1, 0, body)))
    forger.until(lambda: "unsigned" in log_of(fleet, DEVICE))
    forger.close()
    committed = len(fleet.committed())
    fleet.until(lambda: len(fleet.committed()) >= committed + 2)
    assert "forged" not in log_of(fleet, DEVICE)
    before = fleet.ask("keys")["keys"]
    assert {(row["key"], row["ring"], row["private"]) for row in before} == {
        ("release", 1, "here"),
        ("online", 1, "here"),
    }
    for which in ("--online", "--release"):
        fleet.ask("keys", "rotate", which)
    fleet.until(lambda: all(f"ring={3}" in log_of(fleet, name) for name in ("coordinator", DEVICE, "device-01")))
    committed = len(fleet.committed())
    fleet.until(lambda: len(fleet.committed()) >= committed + 2)
    assert not {row["id"] for row in before} & {row["id"] for row in fleet.ask("keys")["keys"]}
    assert not [line for line in log_of(fleet, "coordinator").splitlines() if "task refused" in line]
