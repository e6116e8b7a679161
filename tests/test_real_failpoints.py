"""Real processes killed by SIGKILL at every durable step that has a name: only time is lost."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.failpoints import FAILPOINTS
from tests.audit import audit
from tests.conftest import require_broker
from tests.real_fleet import RealFleet

pytestmark = pytest.mark.real

# Enough chunks for a checkpoint of a transfer in its middle, which is taken every eight.
FEATURES = 80_000
# In the middle of a transfer, and not at its beginning.
NTH = {"agent.chunk-written": 5, "coordinator.chunk-written": 5, "agent.chunk-sent": 5, "coordinator.model-put": 2}


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RealFleet]:
    require_broker("mosquitto")
    training = 'local_steps = 2\ncodec = "all/float32"'
    fleet = RealFleet(tmp_path, "mosquitto", rounds=10_000, devices=2, training=training, features=FEATURES)
    yield fleet
    fleet.stop()


def finish(fleet: RealFleet) -> None:
    fleet.end_after(2)
    fleet.finish()
    fleet.settle()
    assert audit(fleet.folder) == fleet.version()


def test_a_coordinator_killed_at_every_step_in_turn_loses_and_doubles_nothing(fleet: RealFleet) -> None:
    for device in ("device-00", "device-01"):
        fleet.start_agent(device)
    for name in FAILPOINTS:
        if name.startswith("coordinator."):
            fleet.start_coordinator(failpoint=f"{name}:{NTH.get(name, 1)}")
            assert fleet.coordinator is not None
            coordinator = fleet.coordinator
            fleet.until(lambda dead=coordinator: dead.exit_code is not None)  # type: ignore[misc]
            assert coordinator.exit_code == -signal.SIGKILL, f"{name} was not reached"
    fleet.start_coordinator()
    finish(fleet)


def test_an_agent_killed_at_every_step_in_turn_loses_and_doubles_nothing(fleet: RealFleet) -> None:
    fleet.start_coordinator()
    fleet.start_agent("device-01")
    for name in FAILPOINTS:
        if name.startswith("agent."):
            fleet.start_agent("device-00", failpoint=f"{name}:{NTH.get(name, 1)}")
            agent = fleet.agents["device-00"]
            fleet.until(lambda dead=agent: dead.exit_code is not None)  # type: ignore[misc]
            assert agent.exit_code == -signal.SIGKILL, f"{name} was not reached"
    fleet.start_agent("device-00")
    finish(fleet)
