"""The agent's two processes as they run on a device: what each has in memory, what the service manager hears, and what
a kill of the one that trains costs."""

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.audit import audit
from tests.conftest import require_broker
from tests.real_fleet import RealFleet

pytestmark = pytest.mark.real


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[RealFleet]:
    require_broker("mosquitto")
    made = RealFleet(tmp_path, "mosquitto", 2, devices=1, training="local_steps = 8000", deadline_s=120.0)
    yield made
    made.stop()


def child_of(fleet: RealFleet) -> int | None:
    """The process that trains for the one device; None where there is none."""
    pid = fleet.agents["device-00"].process.pid
    found = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    return found[0] if found else None


def libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_the_agent_never_loads_a_runtime_and_a_killed_child_costs_no_update(fleet: RealFleet) -> None:
    fleet.start()
    log = fleet.folder / "logs" / "device-00.log"
    fleet.until(lambda: log.exists() and "checkpoint step=" in log.read_text())
    child, agent = child_of(fleet), fleet.agents["device-00"].process.pid
    assert child is not None
    assert "onnxruntime" in libraries(child)
    assert "onnxruntime" not in libraries(agent)
    os.kill(child, signal.SIGKILL)
    fleet.until(lambda: "goes on after step=" in log.read_text())
    assert "the training process ended: it was ended by signal 9 (SIGKILL)" in log.read_text()
    assert child_of(fleet) != child
    fleet.finish()
    fleet.settle()
    assert audit(fleet.folder) == fleet.version() == 2
    assert "internal fault" not in log.read_text()


def test_a_service_manager_hears_both_daemons(fleet: RealFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(fleet.folder / "notify"))
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(fleet.folder / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")

        def hear(until: str) -> list[str]:
            said = [""]
            while said[-1] != until:
                said.append(manager.recv(1000).decode())
            return said[1:]

        fleet.start_coordinator(exit_when_finished=False)
        said = hear("WATCHDOG=1")
        assert said == ["READY=1", "WATCHDOG=1"]
        assert fleet.coordinator is not None
        fleet.coordinator.process.terminate()
        hear("STOPPING=1")
        fleet.coordinator.process.wait(30)
        # Without a broker: ready is who runs, connected or not.
        fleet.start_agent("device-00")
        assert hear("READY=1") == ["READY=1"]
        assert "WATCHDOG=1" in hear("STATUS=idle, no connection to the broker")
        hear("WATCHDOG=1")
        hear("WATCHDOG=1")
        fleet.agents["device-00"].process.terminate()
        assert hear("STOPPING=1")[-1] == "STOPPING=1"
