"""Real processes over links that are cut, reset, stalled, throttled and half-open in the middle of a transfer."""

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator.broker import find_mosquitto
from devices.processes import start
from protocol.messages import CHUNK_BYTES, WINDOW
from protocol.mqtt import free_port
from tests.audit import audit
from tests.conftest import require_broker
from tests.real_fleet import RealFleet, broker_pid
from tests.real_link import RealLink

pytestmark = pytest.mark.real

# 20 chunks of model down, and 20 of update up.
FEATURES = 160_000
UPDATE_BYTES = 4 * (2 * FEATURES + 2)
WINDOW_BYTES = WINDOW * CHUNK_BYTES
# Slow enough to hit the middle of a transfer, of a little over a second.
RATE = ("--up-kbit-s", "8000", "--down-kbit-s", "16000")
# Messages that are not chunks, MQTT's and our own framing: measured 3 %, and 5 % are allowed.
FRAMING = 1.05


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RealFleet]:
    require_broker("mosquitto")
    training = 'local_steps = 2\ncodec = "all/float32"'
    fleet = RealFleet(tmp_path, "mosquitto", rounds=1, devices=1, training=training, features=FEATURES)
    yield fleet
    fleet.stop()


@pytest.fixture
def link(fleet: RealFleet) -> Iterator[RealLink]:
    """Between the one device and the broker, with the fleet started."""
    fleet.start_coordinator()
    fleet.until(lambda: fleet.events)
    link = RealLink.start(fleet.port, fleet.folder / "link.log", *RATE)
    fleet.connect_through("device-00", link.port)
    fleet.start_agent("device-00")
    yield link
    link.stop()


def uploaded(fleet: RealFleet, link: RealLink, share: float) -> Callable[[], bool]:
    return lambda: link.counts()["bytes_up"] > share * UPDATE_BYTES


def finish(fleet: RealFleet) -> None:
    fleet.finish()
    fleet.settle()
    assert audit(fleet.folder) == 1


@pytest.mark.parametrize("broken", ["cut", "reset"])
def test_a_link_that_breaks_in_a_transfer_costs_at_most_a_window_each_time(
    fleet: RealFleet, link: RealLink, broken: str
) -> None:
    fleet.until(lambda: link.counts()["bytes_down"] > UPDATE_BYTES / 2)
    link.say(broken)
    for share in (0.3, 0.6):
        fleet.until(uploaded(fleet, link, share))
        link.say(broken)
    finish(fleet)
    counts = link.counts()
    assert counts[broken] >= 3
    assert UPDATE_BYTES <= counts["bytes_up"] <= FRAMING * UPDATE_BYTES + 2 * WINDOW_BYTES
    # Down came the model and the bundle's two files of 230 kB.
    assert counts["bytes_down"] <= FRAMING * (UPDATE_BYTES + 240_000) + WINDOW_BYTES


def test_a_link_that_stalls_or_nearly_does_is_waited_for(fleet: RealFleet, link: RealLink) -> None:
    fleet.until(uploaded(fleet, link, 0.3))
    link.say("stalled")
    time.sleep(2.0)  # a pause, shorter than the keep-alive, is the point
    link.say("open up_kbit_s=200")
    before = link.counts()["bytes_up"]
    fleet.until(lambda: link.counts()["bytes_up"] > before + 20_000)
    link.say("up_kbit_s=8000")
    fleet.until(lambda: "update accepted" in fleet.agents["device-00"].log.read_text())
    counts = link.counts()
    assert (counts["opened"], counts["swallowed"]) == (1, 0)
    finish(fleet)
    # What was asked for again while the line stood still is sent twice.
    assert counts["bytes_up"] <= FRAMING * UPDATE_BYTES + WINDOW_BYTES


def test_a_half_open_link_is_noticed_by_the_keep_alive_and_left(fleet: RealFleet, link: RealLink) -> None:
    fleet.until(uploaded(fleet, link, 0.5))
    link.say("half-open")
    fleet.until(lambda: link.counts()["swallowed"] > 0)
    # From now on whoever connects anew is served; the old connection is silent for ever, and never closed.
    link.say("open")
    finish(fleet)
    counts = link.counts()
    assert counts["opened"] >= 2
    assert counts["bytes_up"] <= FRAMING * UPDATE_BYTES + WINDOW_BYTES


def test_a_broker_that_stops_for_a_while_is_waited_for(fleet: RealFleet) -> None:
    fleet.start()
    log = fleet.folder / "logs" / "device-00.log"
    fleet.until(lambda: log.exists() and "task=" in log.read_text())
    broker = broker_pid(fleet)
    assert broker is not None
    os.kill(broker, signal.SIGSTOP)
    time.sleep(3.0)  # the pause is the point
    os.kill(broker, signal.SIGCONT)
    finish(fleet)


def test_a_broker_whose_state_is_wiped_has_nothing_that_anybody_needs(tmp_path: Path) -> None:
    """A broker of the operator's that keeps sessions and retained messages on its disk, killed, and its disk wiped."""
    mosquitto = find_mosquitto()
    if mosquitto is None:
        pytest.skip("mosquitto 2.0 or later is not installed")
    port, kept = free_port(), tmp_path / "kept"
    configuration = tmp_path / "mosquitto.conf"
    configuration.write_text(
        f"listener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {kept}/\n"
        f"autosave_on_changes true\nautosave_interval 1\n" + ("user root\n" if os.geteuid() == 0 else "")
    )
    fleet = RealFleet(tmp_path, f"mqtt://127.0.0.1:{port}", 10_000, devices=2, port=port)
    try:
        for lives in range(3):
            kept.mkdir()
            command = (mosquitto.path, "-c", str(configuration))
            broker = start("mosquitto", command, tmp_path / "logs" / "mosquitto.log")
            fleet.children.append(broker)
            if not lives:
                fleet.start()
            reached = len(fleet.committed()) + 3
            fleet.until(lambda at=reached: len(fleet.committed()) >= at)  # type: ignore[misc]
            if lives < 2:
                fleet.until(lambda: list(kept.iterdir()))
                fleet.kill(broker)
                shutil.rmtree(kept)
        fleet.end_after(2)
        fleet.finish()
        fleet.settle()
        assert audit(tmp_path) == fleet.version()
    finally:
        fleet.stop()
