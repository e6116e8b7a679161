"""A real fleet that hands sums on along a tree: agents and a coordinator as processes over a real broker that loses a
fifth of what devices say to each other; one device is killed and comes back, and one is gone for good."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.broker import Broker
from protocol.mqtt import parse_url
from tests.lossy_front import LossyFront
from tests.real_fleet import RealFleet

pytestmark = pytest.mark.real

GOSSIP = """
[gossip]
topology = "binary-tree"
algorithm = "relay"
codec = "all/float32"
exchanges = 4
patience_s = 0.3
dead_after_s = 5.0
"""


@pytest.fixture
def fleet(tmp_path: Path, mosquitto: Broker) -> Iterator[RealFleet]:
    training = 'local_steps = 5\ncodec = "all/float32"'
    port = parse_url(mosquitto.url).port
    made = RealFleet(tmp_path, mosquitto.url, 10_000, devices=5, training=training, port=port)
    config = tmp_path / "coordinator.toml"
    config.write_text(config.read_text() + GOSSIP)
    yield made
    made.stop()


@pytest.fixture
def front(fleet: RealFleet) -> Iterator[LossyFront]:
    made = LossyFront(fleet.port, 0.2, 0.2, of=lambda topic: "/gossip/" in topic or "/want/" in topic)
    yield made
    made.close()


def members(fleet: RealFleet) -> int:
    return int(fleet._rows("coordinator", "SELECT coalesce(max(members), 0) FROM council"))


def test_a_fleet_on_a_tree_learns_while_messages_are_lost_and_devices_killed(
    fleet: RealFleet, front: LossyFront
) -> None:
    fleet.start_coordinator(exit_when_finished=False)
    for index in range(5):
        fleet.connect_through(f"device-{index:02d}", front.port)
        fleet.start_agent(f"device-{index:02d}")
    fleet.until(lambda: len(fleet.committed()) >= 1)
    fleet.kill(fleet.agents["device-01"])
    fleet.start_agent("device-01")
    fleet.until(lambda: len(fleet.committed()) >= 3)
    assert members(fleet) == 5
    fleet.kill(fleet.agents["device-02"])
    fleet.until(lambda: members(fleet) == 4)
    version = fleet.version()
    fleet.until(lambda: fleet.version() >= version + 2)
    fleet.end_after(1)
    fleet.finish()
    rows = fleet.ask("rounds")["rounds"]
    assert rows[-1]["devices"] == 4
    assert rows[-1]["accuracy"] > 0.8
    assert front.counts["lost"] > 0 < front.counts["doubled"], front.counts
