"""Real processes killed by SIGKILL at every durable step that has a name: only time is lost."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.broker import Broker
from devices.processes import Child
from protocol.failpoints import FAILPOINTS
from protocol.mqtt import parse_url
from tests.audit import audit
from tests.real_fleet import RealFleet

pytestmark = pytest.mark.real

# Enough chunks for a checkpoint of a transfer in its middle, which is taken every eight.
FEATURES = 80_000
# In the middle of a transfer, and not at its beginning.
NTH = {"agent.chunk-written": 5, "coordinator.chunk-written": 5, "agent.chunk-sent": 5, "coordinator.model-put": 2}


Make = Callable[..., RealFleet]


@pytest.fixture
def make(tmp_path: Path, mosquitto: Broker) -> Iterator[Make]:
    """Fleets that meet at a broker of ours, which nobody kills."""
    made: list[RealFleet] = []

    def make(**how: Any) -> RealFleet:
        made.append(RealFleet(tmp_path, mosquitto.url, 10_000, port=parse_url(mosquitto.url).port, **how))
        return made[-1]

    yield make
    for fleet in made:
        fleet.stop()


def finish(fleet: RealFleet) -> None:
    fleet.end_after(2)
    fleet.finish()
    fleet.settle()
    assert audit(fleet.folder) == fleet.version()


def await_kill(fleet: RealFleet, child: Child | None, name: str) -> None:
    assert child is not None
    fleet.until(lambda: child.exit_code is not None)
    assert child.exit_code == -signal.SIGKILL, f"{name} was not reached"


def test_a_coordinator_killed_at_every_step_in_turn_loses_and_doubles_nothing(make: Make) -> None:
    fleet = make(devices=2, training='local_steps = 2\ncodec = "all/float32"', features=FEATURES)
    for device in ("device-00", "device-01"):
        fleet.start_agent(device)
    for name in FAILPOINTS:
        if name.startswith("coordinator."):
            fleet.start_coordinator(failpoint=f"{name}:{NTH.get(name, 1)}")
            await_kill(fleet, fleet.coordinator, name)
    fleet.start_coordinator()
    finish(fleet)


def test_an_agent_killed_at_every_step_in_turn_loses_and_doubles_nothing(make: Make) -> None:
    fleet = make(devices=2, training='local_steps = 2\ncodec = "all/float32"', features=FEATURES)
    fleet.start_coordinator()
    fleet.start_agent("device-01")
    for name in FAILPOINTS:
        # What is trained in a moment has no checkpoint: see below.
        if name.startswith("agent.") and name != "agent.checkpoint-written":
            fleet.start_agent("device-00", failpoint=f"{name}:{NTH.get(name, 1)}")
            await_kill(fleet, fleet.agents["device-00"], name)
    fleet.start_agent("device-00")
    finish(fleet)


def test_an_agent_killed_behind_a_checkpoint_of_its_training_goes_on_from_there(make: Make) -> None:
    fleet = make(devices=1, training="local_steps = 8000")
    fleet.start_coordinator()
    fleet.start_agent("device-00", failpoint="agent.checkpoint-written")
    await_kill(fleet, fleet.agents["device-00"], "agent.checkpoint-written")
    fleet.start_agent("device-00")
    log = fleet.agents["device-00"].log
    fleet.until(lambda: "goes on after step=" in log.read_text())
    finish(fleet)
