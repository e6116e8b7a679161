"""The whole of it, as real processes over real brokers: rounds run, and kills cost time only."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.broker import BrokerKind
from tests.audit import audit
from tests.conftest import require_broker
from tests.real_fleet import RealFleet, accuracy, broker_pid, is_gone
from tests.waiting import until

pytestmark = pytest.mark.real


@pytest.fixture
def fleets() -> Iterator[list[RealFleet]]:
    started: list[RealFleet] = []
    yield started
    for fleet in started:
        fleet.stop()


def launch(fleets: list[RealFleet], folder: Path, broker: BrokerKind, rounds: int) -> RealFleet:
    require_broker(broker)
    fleet = RealFleet(folder, broker, rounds)
    fleets.append(fleet)
    fleet.start()
    return fleet


@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_a_fleet_trains_to_the_end_over_each_broker(
    tmp_path: Path, fleets: list[RealFleet], broker: BrokerKind
) -> None:
    fleet = launch(fleets, tmp_path, broker, rounds=4)
    fleet.finish()
    assert fleet.committed() == [1, 2, 3, 4]
    rows = fleet.ask("rounds")["rounds"]
    assert [row["devices"] for row in rows[-4:]] == [3, 3, 3, 3]
    assert accuracy(rows[-4:]) > 0.8
    devices = fleet.ask("devices")["devices"]
    assert [(row["device"], row["accepted"], row["rejected"]) for row in devices] == [
        ("device-00", 4, 0),
        ("device-01", 4, 0),
        ("device-02", 4, 0),
    ]
    assert all(row["bytes_up"] > 0 < row["bytes_down"] for row in devices)
    assert [row["examples"] for row in devices] == [30, 31, 32]


def test_killing_agents_coordinator_and_broker_costs_time_only(tmp_path: Path, fleets: list[RealFleet]) -> None:
    fleet = launch(fleets, tmp_path, "mosquitto", rounds=12)
    fleet.until(lambda: len(fleet.committed()) >= 2)

    fleet.kill(fleet.agents["device-01"])
    fleet.start_agent("device-01")
    fleet.until(lambda: len(fleet.committed()) >= 4)

    broker = broker_pid(fleet)
    assert broker is not None
    os.kill(broker, signal.SIGKILL)
    fleet.until(lambda: len(fleet.committed()) >= 6)

    assert fleet.coordinator is not None
    broker = broker_pid(fleet)
    fleet.kill(fleet.coordinator)
    assert broker is not None
    until(lambda: is_gone(broker))
    fleet.start_coordinator()
    fleet.finish()

    committed = fleet.committed()
    # The coordinator may be killed between a commit and its news of it; a round is never committed twice.
    assert sorted(set(committed)) == committed
    assert committed[-1] == 12
    rows = fleet.ask("rounds")["rounds"]
    assert [row["round"] for row in rows][-12:] == list(range(1, 13))
    assert sum(row["accepted"] for row in fleet.ask("devices")["devices"]) == 3 * 12


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_after_random_kills_every_receipted_update_is_in_exactly_one_fold(
    tmp_path: Path, fleets: list[RealFleet]
) -> None:
    rng = random.Random(20261122)
    fleet = launch(fleets, tmp_path, "mosquitto", rounds=150)
    for _ in range(14):
        reached = min(150, len(fleet.committed()) + rng.choice([0, 0, 1]))
        fleet.until(lambda at=reached: len(fleet.committed()) >= at)  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.3))  # a kill at no particular moment is the point
        victim = rng.choice(["agent", "agent", "coordinator", "broker"])
        broker = broker_pid(fleet)
        if victim == "agent":
            device = rng.choice(sorted(fleet.agents))
            fleet.kill(fleet.agents[device])
            fleet.start_agent(device)
        elif victim == "coordinator" and fleet.coordinator is not None and fleet.coordinator.exit_code is None:
            fleet.kill(fleet.coordinator)
            fleet.start_coordinator()
        elif victim == "broker" and broker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(broker, signal.SIGKILL)
    fleet.finish()
    fleet.settle()
    assert audit(tmp_path) == 150


def test_a_broker_that_is_not_there_yet_is_waited_for(tmp_path: Path, fleets: list[RealFleet]) -> None:
    require_broker("mosquitto")
    fleet = RealFleet(tmp_path, "mosquitto", rounds=1)
    fleets.append(fleet)
    for index in range(fleet.devices):
        fleet.start_agent(f"device-{index:02d}")
    log = tmp_path / "logs" / "device-00.log"
    fleet.until(lambda: log.exists() and "disconnected" in log.read_text())
    fleet.start_coordinator()
    fleet.finish()


def test_a_stopped_coordinator_leaves_no_broker_behind_and_its_store_answers(
    tmp_path: Path, fleets: list[RealFleet]
) -> None:
    fleet = launch(fleets, tmp_path, "mosquitto", rounds=1000)
    fleet.until(lambda: len(fleet.committed()) >= 1)
    running = fleet.ask("status")
    assert running["version"] >= 1
    broker = broker_pid(fleet)
    assert fleet.coordinator is not None
    assert broker is not None
    fleet.coordinator.process.terminate()
    assert fleet.coordinator.process.wait(5) == 0
    until(lambda: is_gone(broker))
    stopped = fleet.ask("status")
    assert stopped["version"] >= running["version"]


def test_two_devices_of_one_bundle_fetch_it_over_mqtt_and_an_exported_model_is_written(
    tmp_path: Path, fleets: list[RealFleet]
) -> None:
    fleet = launch(fleets, tmp_path, "mosquitto", rounds=1)
    fleet.finish()
    fetched = list(tmp_path.glob("device-*/state/bundles/*/numpy/graph.bin"))
    assert len(fetched) == 3
    assert {path.read_bytes() for path in fetched} == {(tmp_path / "bundle/numpy/graph.bin").read_bytes()}
    fleet.ask("export-model", "--out", str(tmp_path / "trained.onnx"))
    trained = (tmp_path / "trained.onnx").read_bytes()
    assert len(trained) == (tmp_path / "bundle/inference.onnx").stat().st_size
    assert any(trained)
