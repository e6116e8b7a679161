"""The coordinator killed around late updates: each is in exactly one fold, and every model is the fold of its set."""

from pathlib import Path
from typing import Any

import pytest

from tests.audit import refold
from tests.coordinator.simulation import Simulation
from tests.coordinator.test_crashes import Killed, arm

SLOW = "dev-3"
MODES: dict[str, dict[str, Any]] = {
    "rounds": {"over_select": 1.3},
    "buffered": {"mode": "buffered", "buffer": 2},
}
FAILPOINTS = [
    pytest.param(mode, part, method, when, nth, id=f"{mode}-{when}-{part}-{method}-{nth}")
    for mode in MODES
    for part, method, calls in (
        ("store", "accept", (8, 11)),
        ("store", "commit_round", (1, 4)),
        ("store", "sweep", (2,)),
        ("store", "open_round", (2, 5)),
        ("reception", "settle", (60,)),
        ("link", "send", (30,)),
    )
    for when in ("before", "after")
    for nth in calls
]


@pytest.mark.parametrize(("mode", "part", "method", "when", "nth"), FAILPOINTS)
def test_a_kill_leaves_every_late_update_in_one_fold(
    mode: str, part: str, method: str, when: str, nth: int, tmp_path: Path
) -> None:
    fleet = Simulation.make(tmp_path, 4, count=7, deadline_s=1000.0, **MODES[mode])
    for device, agent in fleet.agents.items():
        agent.train_s = 25.0 if device == SLOW else 10.0
    coordinator = fleet.coordinator
    targets = {"store": fleet.store, "link": coordinator._link, "reception": coordinator._reception}
    died = arm(targets[part], method, when, nth)
    try:
        fleet.finish()
    except Killed:
        fleet.kill()
        fleet.start()
        fleet.finish()
    assert died(), "the failpoint was never reached"
    for _ in range(50):
        fleet.turn()
    assert refold(tmp_path / "state", fleet.bundle) == 7
    fates = fleet.store._sql.execute("SELECT round, device, fold, discarded FROM updates").fetchall()
    assert all((fold is None) != (discarded is None) for _, _, fold, discarded in fates)
    assert any(fold is not None and fold > number for number, _, fold, _ in fates), "something was late"
    receipted = {
        (int(task.rpartition("/")[2]), device)
        for device, agent in fleet.agents.items()
        for task, receipt in agent.settled.items()
        if receipt.verdict == "accepted"
    }
    assert receipted == {(number, device) for number, device, _, _ in fates}
    fleet.store.close()
