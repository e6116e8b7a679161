"""Power cuts under real processes with real SQLite: what was not made durable goes, and nothing that was promised."""

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from coordinator.broker import Broker
from devices.processes import Child
from protocol.failpoints import Failpoint
from protocol.mqtt import parse_url
from tests.audit import audit, examine
from tests.power_cut import Disk, kill_recorded, recording
from tests.real_fleet import ROOT, RealFleet

pytestmark = pytest.mark.real

# Where the most was promised and the least may be on disk.
COORDINATOR: tuple[tuple[Failpoint, int], ...] = (
    ("coordinator.model-put", 2),
    ("coordinator.receipt-sent", 1),
    ("coordinator.receipt-sent", 4),
    ("coordinator.update-accepted", 3),
    ("coordinator.round-committed", 2),
    ("coordinator.swept", 1),
)
AGENT: tuple[tuple[Failpoint, int], ...] = (
    ("agent.task-remembered", 1),
    ("agent.payload-put", 2),
    ("agent.update-kept", 1),
    ("agent.offer-sent", 1),
    ("agent.receipt-settled", 1),
    ("agent.task-forgotten", 2),
)


@pytest.fixture(autouse=True)
def strace(tmp_path: Path) -> None:
    """Every test here needs it, installed and allowed to trace its children."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    if subprocess.run([*recording(tmp_path / "probe"), "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here")


@pytest.fixture
def fleet(tmp_path: Path, mosquitto: Broker) -> Iterator[RealFleet]:
    fleet = RealFleet(tmp_path, mosquitto.url, 10_000, devices=2, port=parse_url(mosquitto.url).port)
    yield fleet
    fleet.stop()


def record(folder: Path, program: str) -> Disk:
    """The folder's disk after a program, which is given its path, under a recording."""
    trace = folder.parent / "trace"
    disk = Disk(folder, ROOT)
    subprocess.run([*recording(trace), sys.executable, "-c", program, str(folder)], check=True, cwd=ROOT)
    disk.replay(trace)
    return disk


@dataclass
class Life:
    """A process from its start to its power cut. disk: as it was at the start, until the recording is replayed."""

    fleet: RealFleet
    state: Path
    disk: Disk
    trace: Path

    @classmethod
    def begin(cls, fleet: RealFleet, part: str) -> "Life":
        """From now on, whatever the fleet starts is recorded, until `recorded`."""
        state = fleet.folder / ("coordinator" if part == "coordinator" else f"{part}/state")
        trace = fleet.folder / "trace"
        fleet.wrapped = recording(trace)
        return cls(fleet, state, Disk(state, ROOT), trace)

    def end(self, child: Child, rng: np.random.Generator | None) -> None:
        """Waits for the process to die, and takes from its disk what was not durable at that moment."""
        self.fleet.wrapped = ()
        self.fleet.until(lambda: child.exit_code is not None)
        self.disk.replay(self.trace)
        self.disk.cut(rng)


def test_what_a_cut_takes_is_what_was_not_synced(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
root = Path(sys.argv[1])
def sync(path):
    number = os.open(path, os.O_RDONLY); os.fsync(number); os.close(number)
root.mkdir(); sync(root.parent)
for name in ("named", "nameless", "unsynced", "old", "removed", "rewritten"):
    (root / name).write_bytes(name.encode())
for name in ("named", "nameless", "old", "removed", "rewritten"):
    sync(root / name)
(root / "folder").mkdir(); (root / "folder" / "inside").write_bytes(b"inside"); sync(root / "folder" / "inside")
(root / "nameless").rename(root / "nameless.tmp")
sync(root)
(root / "nameless.tmp").rename(root / "nameless")
(root / "old").rename(root / "new")
(root / "removed").unlink()
with (root / "rewritten").open("r+b") as file: file.write(b"REW")
"""
    disk = record(tmp_path / "state", program)
    assert (tmp_path / "state" / "new").read_bytes() == b"old"
    disk.cut()
    found = {path.name: path.read_bytes() for path in (tmp_path / "state").iterdir() if path.is_file()}
    assert found == {
        "named": b"named",
        "nameless.tmp": b"nameless",
        "unsynced": b"",
        "old": b"old",
        "removed": b"removed",
        "rewritten": b"rewritten",
    }
    assert list((tmp_path / "state" / "folder").iterdir()) == []


def test_a_replayed_recording_is_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    program = """
import sys; from pathlib import Path
from tests.tiny import write_bundle
from edge_agent.store import AgentStore
store = AgentStore(Path(sys.argv[1]), 1 << 20)
for number in range(9):
    store.blobs.put(bytes([number]) * 1000 * number); store.next_sequence()
store.blobs.keep_only(set())
store.close()
"""
    disk = record(folder, program)
    written = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for name in tuple(disk._names):
        disk._sync(name)
    disk.cut()
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == written


@pytest.mark.parametrize(("synchronous", "survive"), [("FULL", 10), ("OFF", 0)])
def test_a_database_keeps_its_commits_only_with_the_setting_that_we_use(
    tmp_path: Path, synchronous: str, survive: int
) -> None:
    program = f"""
import os, signal, sqlite3, sys; from pathlib import Path
from protocol.disk import LOCAL
root = Path(sys.argv[1]); LOCAL.make_folder(root)
store = sqlite3.connect(root / "d.sqlite", isolation_level=None)
store.execute("PRAGMA journal_mode=WAL"); store.execute("PRAGMA synchronous=FULL")
store.execute("CREATE TABLE t (a)")
store.execute("PRAGMA synchronous={synchronous}")
for number in range(10): store.execute("INSERT INTO t VALUES (?)", (number,))
os._exit(0)
"""
    disk = record(tmp_path / "state", program)
    disk.cut()
    connection = sqlite3.connect(tmp_path / "state" / "d.sqlite")
    try:
        assert connection.execute("SELECT count(*) FROM t").fetchone()[0] == survive
    finally:
        connection.close()


@pytest.mark.parametrize("some", [False, True], ids=["nothing unsynced is left", "some of it is"])
def test_a_coordinator_whose_power_is_cut_loses_no_receipted_update(fleet: RealFleet, some: bool) -> None:
    rng = np.random.default_rng(7) if some else None
    for device in ("device-00", "device-01"):
        fleet.start_agent(device)
    for name, nth in COORDINATOR:
        life = Life.begin(fleet, "coordinator")
        fleet.start_coordinator(failpoint=f"{name}:{nth}")
        assert fleet.coordinator is not None
        life.end(fleet.coordinator, rng)
    fleet.start_coordinator()
    fleet.end_after(2)
    fleet.finish()
    fleet.settle()
    assert audit(fleet.folder) == fleet.version()


@pytest.mark.parametrize("some", [False, True], ids=["nothing unsynced is left", "some of it is"])
def test_an_agent_whose_power_is_cut_keeps_its_updates_and_doubles_none(fleet: RealFleet, some: bool) -> None:
    rng = np.random.default_rng(8) if some else None
    fleet.start_coordinator()
    fleet.start_agent("device-01")
    for name, nth in AGENT:
        life = Life.begin(fleet, "device-00")
        fleet.start_agent("device-00", failpoint=f"{name}:{nth}")
        life.end(fleet.agents["device-00"], rng)
    fleet.start_agent("device-00")
    fleet.end_after(2)
    fleet.finish()
    fleet.settle()
    assert audit(fleet.folder) == fleet.version()


def test_power_cuts_in_the_middle_of_transfers_leave_no_promise_of_chunks_that_are_gone(
    tmp_path: Path, mosquitto: Broker
) -> None:
    rng = np.random.default_rng(9)
    how = {"training": 'local_steps = 2\ncodec = "all/float32"', "features": 80_000}
    fleet = RealFleet(tmp_path, mosquitto.url, 10_000, devices=1, port=parse_url(mosquitto.url).port, **how)  # type: ignore[arg-type]
    try:
        fleet.start_coordinator()
        for name in ("agent.chunk-written:5", "agent.transfer-checkpointed:3", "agent.chunk-written:9"):
            life = Life.begin(fleet, "device-00")
            fleet.start_agent("device-00", failpoint=name)
            life.end(fleet.agents["device-00"], rng)
        fleet.start_agent("device-00")
        for name in ("coordinator.chunk-written:5", "coordinator.transfer-checkpointed:1", "coordinator.blob-finished"):
            assert fleet.coordinator is not None
            if fleet.coordinator.exit_code is None:
                fleet.kill(fleet.coordinator)
            life = Life.begin(fleet, "coordinator")
            fleet.start_coordinator(failpoint=name)
            life.end(fleet.coordinator, rng)
        fleet.start_coordinator()
        fleet.end_after(2)
        fleet.finish()
        fleet.settle()
        assert audit(fleet.folder) == fleet.version()
    finally:
        fleet.stop()


def test_a_coordinator_that_does_not_sync_is_caught(fleet: RealFleet) -> None:
    """The proof that the tests above can fail: the same, with a store whose commits are not made durable."""
    careless = """
import runpy, sqlite3, sys
class Careless(sqlite3.Connection):
    def execute(self, said, *values):
        return super().execute(said.replace("synchronous=FULL", "synchronous=OFF"), *values)
connect = sqlite3.connect
sqlite3.connect = lambda *a, **k: connect(*a, **k, factory=Careless)
sys.argv = ["coordinator", *sys.argv[1:]]
runpy.run_module("coordinator", run_name="__main__")
"""
    for device in ("device-00", "device-01"):
        fleet.start_agent(device)
    fleet.start_coordinator()
    fleet.until(lambda: len(fleet.committed()) >= 1)
    assert fleet.coordinator is not None
    fleet.kill(fleet.coordinator)
    life = Life.begin(fleet, "coordinator")
    fleet.wrapped = (*fleet.wrapped, sys.executable, "-c", careless)
    command = ("run", "--config", str(fleet.folder / "coordinator.toml"), "--json")
    fleet.coordinator = fleet._launch("coordinator", command)
    reached = len(fleet.committed()) + 3
    fleet.until(lambda: len(fleet.committed()) >= reached)
    kill_recorded(fleet.coordinator)
    life.end(fleet.coordinator, None)
    fleet.stop()
    assert examine(fleet.folder).lost >= 2 * 2, "two rounds at least had been receipted, and are gone"
