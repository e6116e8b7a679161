"""A real fleet without a hub: agents and a coordinator as processes over a real broker, messages lost and doubled,
processes killed, devices that come, leave and die."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.broker import Broker
from protocol.failpoints import FAILPOINTS
from protocol.mqtt import parse_url
from tests.conftest import require_broker
from tests.lossy_front import LossyFront
from tests.real_fleet import ROOT, RealFleet

pytestmark = pytest.mark.real


@pytest.fixture
def fleets() -> Iterator[list[RealFleet]]:
    started: list[RealFleet] = []
    yield started
    for fleet in started:
        fleet.stop()


def make(
    fleets: list[RealFleet], folder: Path, broker: Broker, gossip: str, rounds: int = 3, devices: int = 4, **how: float
) -> RealFleet:
    folder.mkdir(exist_ok=True)
    training = 'local_steps = 5\ncodec = "all/float32"'
    port = parse_url(broker.url).port
    fleet = RealFleet(folder, broker.url, rounds, devices=devices, training=training, port=port, **how)  # type: ignore[arg-type]
    config = folder / "coordinator.toml"
    config.write_text(f'{config.read_text()}\n[gossip]\ntopology = "ring"\n{gossip}\n')
    fleets.append(fleet)
    return fleet


def model(fleet: RealFleet) -> bytes:
    """The newest version."""
    digest = fleet._rows("coordinator", "SELECT digest FROM models ORDER BY version DESC LIMIT 1")
    return (fleet.folder / "coordinator" / "models" / bytes(digest).hex()).read_bytes()


def await_kill(fleet: RealFleet) -> None:
    dying = fleet.coordinator
    assert dying is not None
    fleet.until(lambda: dying.exit_code == -signal.SIGKILL)


def members(fleet: RealFleet) -> int:
    return int(fleet._rows("coordinator", "SELECT coalesce(max(members), 0) FROM council"))


def test_lost_and_doubled_messages_and_killed_processes_leave_the_very_bits_of_an_undisturbed_fleet(
    tmp_path: Path, fleets: list[RealFleet], mosquitto: Broker, request: pytest.FixtureRequest
) -> None:
    gossip = 'codec = "all/sign"\ngamma = 0.5\nexchanges = 6'
    undisturbed = make(fleets, tmp_path / "a", mosquitto, gossip)
    undisturbed.start()
    # Longer than a device is away that is killed three times.
    fleet = make(fleets, tmp_path / "b", mosquitto, gossip, deadline_s=120.0)
    front = LossyFront(fleet.port, of=lambda topic: "/gossip" in topic or "/want/" in topic or topic.endswith("/up"))
    request.addfinalizer(front.close)
    # It dies with the first epoch kept and nobody told, before that and behind it.
    for name in ("coordinator.council-keeping", "coordinator.council-kept"):
        fleet.start_coordinator(failpoint=name)
        for index in range(4) if not fleet.agents else ():
            fleet.connect_through(f"device-{index:02d}", front.port)
            fleet.start_agent(f"device-{index:02d}")
        await_kill(fleet)
    fleet.start_coordinator()
    fleet.until(lambda: 1 in fleet.committed())
    fleet.kill(fleet.agents["device-01"])
    for name in (name for name in FAILPOINTS if name.startswith("agent.gossip")):
        # A few exchanges later, in the middle of what is durable of one.
        fleet.start_agent("device-01", failpoint=f"{name}:3")
        device = fleet.agents["device-01"]
        fleet.until(lambda: device.exit_code == -signal.SIGKILL)  # noqa: B023
    fleet.start_agent("device-01")
    assert fleet.coordinator is not None
    fleet.kill(fleet.coordinator)
    fleet.start_coordinator()
    undisturbed.finish()
    fleet.finish()
    assert front.counts["lost"] > 0 < front.counts["doubled"], front.counts
    assert model(fleet) == model(undisturbed)
    assert {row["devices"] for row in fleet.ask("rounds")["rounds"] if row["round"]} == {4}
    assert fleet.ask("status")["epoch"] == 1


def test_a_device_joins_one_leaves_and_one_dies_and_the_others_go_on_together(
    tmp_path: Path, fleets: list[RealFleet], mosquitto: Broker
) -> None:
    gossip = 'codec = "all/float16"\ngamma = 1.0\nexchanges = 4\ndead_after_s = 5.0'
    fleet = make(fleets, tmp_path / "a", mosquitto, gossip, rounds=10_000, devices=5)
    config = fleet.folder / "coordinator.toml"
    config.write_text(config.read_text().replace("devices = 5", "devices = 4"))
    fleet.start_coordinator(exit_when_finished=False)
    for index in range(4):
        fleet.start_agent(f"device-{index:02d}")
    fleet.until(lambda: len(fleet.committed()) >= 1)
    fleet.start_agent("device-04")
    fleet.until(lambda: any(e["event"] == "round-committed" and e["devices"] == 5 for e in fleet.events))
    fleet.agents["device-00"].process.send_signal(signal.SIGTERM)
    fleet.until(lambda: members(fleet) == 4)
    fleet.kill(fleet.agents["device-01"])
    fleet.until(lambda: members(fleet) == 3)
    version = fleet.version()
    fleet.until(lambda: fleet.version() >= version + 2)
    fleet.end_after(1)
    fleet.finish()
    rows = fleet.ask("rounds")["rounds"]
    assert rows[-1]["devices"] == 3
    assert rows[-1]["accuracy"] > 0.8
    assert rows[-1]["distance"] is not None


def test_the_documents_settings_make_a_fleet_whose_devices_hear_and_believe_their_neighbours_alone(
    tmp_path: Path, fleets: list[RealFleet]
) -> None:
    """With certificates and seals, at the coordinator's own broker."""
    require_broker("mosquitto")
    fleet = RealFleet(tmp_path, "mosquitto", 2, devices=4, training="local_steps = 5", enrols=True)
    fleets.append(fleet)
    page = (ROOT / "docs" / "gossip.md").read_text().partition("## Run it")[2]
    said = re.findall(r"(?s)```toml\n(\[gossip\].*?)```", page)[0]
    config = fleet.folder / "coordinator.toml"
    config.write_text(f"{config.read_text()}\n{said}")
    fleet.start()
    fleet.finish()
    rows = fleet.ask("rounds")["rounds"]
    assert [row["devices"] for row in rows if row["round"]] == [4, 4]
    assert rows[-1]["distance"] > 0
    access = (fleet.folder / "coordinator" / "broker" / "acl").read_text()
    heard = re.findall(r"topic read sf/1/[^/]+/(device-\d+)/gossip\n", access.partition("user device-00\n")[2])
    assert heard[:2] == ["device-01", "device-03"]
    assert "gamma codec=all/sign devices=4" in (fleet.folder / "logs" / "coordinator.log").read_text()
