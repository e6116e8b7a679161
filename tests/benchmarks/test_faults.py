"""The faults benchmark counts what its audit finds, and an audit finds what is wrong."""

import sqlite3
from pathlib import Path

import pytest

from benchmarks.real_faults import run
from tests.audit import examine
from tests.conftest import require_broker
from tests.real_fleet import RealFleet

pytestmark = pytest.mark.real


def test_a_few_kills_of_real_processes_lose_and_double_nothing() -> None:
    require_broker("mosquitto")
    said: list[str] = []
    (row,) = run(5, 3, said.append)
    assert {key: row[key] for key in ("kind", "schedules", "kills", "lost", "doubled", "bit_identical")} == {
        "kind": "real",
        "schedules": 1,
        "kills": 5,
        "lost": 0,
        "doubled": 0,
        "bit_identical": True,
    }
    assert row["receipted"]
    assert said


def test_an_audit_sees_what_is_lost_doubled_altered_or_left_lying_about(tmp_path: Path) -> None:
    require_broker("mosquitto")
    fleet = RealFleet(tmp_path, "mosquitto", rounds=3, devices=2)
    try:
        fleet.start()
        fleet.finish()
        fleet.settle()
    finally:
        fleet.stop()
    before = examine(tmp_path)
    assert before.clean
    assert (before.rounds, before.receipted, before.folded) == (3, 6, 6)

    store = sqlite3.connect(tmp_path / "coordinator" / "coordinator.sqlite", isolation_level=None)
    try:
        store.execute("BEGIN")
        store.execute("DELETE FROM updates WHERE round = 2 AND device = 'device-01'")
        store.execute("COMMIT")
    finally:
        store.close()
    (tmp_path / "device-00" / "state" / "blobs" / "left.tmp").write_bytes(b"")
    after = examine(tmp_path)
    assert (after.lost, after.differing) == (1, 2)
    assert "device-00/state/blobs/left.tmp" in after.strays
    assert any(name.startswith("updates/") for name in after.strays)

    agent = sqlite3.connect(tmp_path / "device-00" / "state" / "agent.sqlite", isolation_level=None)
    try:
        agent.execute("UPDATE settled SET count = count - 1")
    finally:
        agent.close()
    assert examine(tmp_path).doubled == 1
