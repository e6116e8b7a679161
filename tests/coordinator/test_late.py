"""Updates that come after their round was closed: carried, folded with their weight, or refused with the reason."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coordinator.carried import has_lost
from coordinator.fold import Decoded, Weighted, discount, fold
from coordinator.reports import Reports
from coordinator.robust import robust_fold
from coordinator.settings import RoundSettings
from coordinator.trust_settings import FoldSettings
from protocol.layout import Layout
from protocol.messages import CHUNK_BYTES, WINDOW, Task, Withdraw
from tests.audit import refold
from tests.coordinator.old_stores import age
from tests.coordinator.simulation import Simulation

SLOW = "dev-3"
HOUR_S = 3600.0


def fleet_of(folder: Path, slow_s: float = 65.0, fast_s: float = 10.0, **rounds: Any) -> Simulation:
    """Four devices, three of which close a round; one is slow."""
    wanted: dict[str, Any] = {"count": 10, "over_select": 1.3, "deadline_s": 1000.0} | rounds
    fleet = Simulation.make(folder, 4, **wanted)
    for device, agent in fleet.agents.items():
        agent.train_s = slow_s if device == SLOW else fast_s
    return fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Simulation]:
    made = fleet_of(tmp_path)
    yield made
    made.store.close()


def fates(fleet: Simulation, device: str) -> list[tuple[int, int | None, float | None, str | None]]:
    return fleet.store._sql.execute(
        "SELECT round, fold, discount, discarded FROM updates WHERE device = ? ORDER BY round", (device,)
    ).fetchall()


def audited(fleet: Simulation) -> int:
    return refold(fleet.folder / "state", fleet.bundle)


def told(fleet: Simulation, device: str, kind: type) -> list[object]:
    return [body for body in fleet.agents[device].heard if isinstance(body, kind)]


def test_a_device_that_is_slow_holds_nobody_up_and_its_work_is_folded_by_staleness(fleet: Simulation) -> None:
    fleet.finish()
    (first, *_) = fates(fleet, SLOW)
    begun, fold, share, discarded = first
    assert begun == 1
    assert fold is not None
    assert 6 <= fold <= 8, "six rounds of the others went by"
    assert share == (1 + fold - 1) ** -0.5
    assert discarded is None
    assert all(event.seconds < 15.0 for event in fleet.committed), "no round took as long as the slow device"
    assert [event.late for event in fleet.committed if event.round == fold] == [1]
    assert audited(fleet) == 10


def test_a_carried_device_is_given_no_second_task_until_it_delivered(fleet: Simulation) -> None:
    slow = fleet.agents[SLOW]
    fleet.until(lambda: len(fleet.committed) == 5)
    assert {task.round for task in told(fleet, SLOW, Task) if isinstance(task, Task)} == {1}
    fleet.until(lambda: bool(slow.settled))
    number = fleet.committed[-1].round + 1
    fleet.until(lambda: slow.task is not None)
    assert slow.task is not None
    assert slow.task.round >= number
    fleet.finish()


def test_no_late_hours_withdraws_the_task_when_its_round_closes(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, late_hours=0.0)
    fleet.until(lambda: bool(told(fleet, SLOW, Withdraw)))
    assert told(fleet, SLOW, Withdraw)[0] == Withdraw(f"{fleet.store.run}/1", "round-closed")
    fleet.finish()
    assert not any(event.late for event in fleet.committed)
    fleet.store.close()


def test_past_its_horizon_a_task_is_withdrawn_and_its_update_refused_with_the_remedy(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, slow_s=3 * HOUR_S, late_hours=0.01, count=60)
    slow = fleet.agents[SLOW]
    fleet.until(lambda: len(fleet.committed) == 1)
    fleet.broker.cut(SLOW)
    fleet.until(lambda: fleet.now > 100.0 + 36.0 + 20.0)
    assert SLOW not in fleet.coordinator._course.carried
    # It never heard so: it was cut off.
    assert slow.task is not None
    slow.pack(fleet.now)
    fleet.broker.restore(SLOW)
    fleet.until(lambda: bool(slow.settled))
    (receipt,) = slow.settled.values()
    assert (receipt.verdict, receipt.reason) == ("rejected", "too-late")
    assert "rounds.late_hours" in receipt.detail
    assert [(r.device, r.round, r.reason) for r in fleet.rejected] == [(SLOW, 1, "too-late")]
    fleet.store.close()


def test_the_horizon_counts_rounds_too(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, late_rounds=3)
    fleet.finish()
    assert told(fleet, SLOW, Withdraw)[0] == Withdraw(f"{fleet.store.run}/1", "too-late")
    assert fates(fleet, SLOW) == [], "it was given another task and that was too late as well"
    fleet.store.close()


def test_neither_a_stopped_coordinator_nor_a_clock_that_jumps_shortens_the_horizon(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, slow_s=0.9 * HOUR_S, late_hours=1.0, count=500, late_rounds=500)
    fleet.until(lambda: len(fleet.committed) == 1)
    fleet.kill()
    fleet.wall_s += 10 * 365 * 24 * HOUR_S
    fleet.agents[SLOW].trained_at += 5 * HOUR_S
    fleet.now += 5 * HOUR_S
    fleet.start()
    fleet.until(lambda: bool(fleet.agents[SLOW].settled), turns=60_000)
    assert [r.verdict for r in fleet.agents[SLOW].settled.values()] == ["accepted"]
    fleet.store.close()


def test_a_device_that_comes_back_without_its_task_gets_another(fleet: Simulation) -> None:
    fleet.until(lambda: len(fleet.committed) == 2)
    slow = fleet.agents[SLOW]
    slow.restart()
    fleet.until(lambda: slow.task is not None)
    assert slow.task is not None
    assert slow.task.round > 2
    with Reports(fleet.folder / "state") as reports:
        assert {row.device: row.reason for row in reports.round(1).devices}[SLOW] == "lost"
    fleet.finish()


def test_an_update_that_waits_in_the_outbox_is_not_a_lost_task() -> None:
    assert not has_lost("run/1", None, 1)
    assert not has_lost("run/1", "run/1", 0)
    assert has_lost("run/1", None, 0)
    assert has_lost("run/1", "run/2", 0)


def test_a_late_device_that_fails_ends_its_seat_and_nothing_else(fleet: Simulation) -> None:
    fleet.until(lambda: len(fleet.committed) == 3)
    slow = fleet.agents[SLOW]
    slow.answer_state, task = "failed", slow.task
    assert task is not None
    slow.task = None
    slow.begin(task)
    fleet.until(lambda: SLOW not in fleet.coordinator._course.carried)
    slow.answer_state = "accepted"
    fleet.finish()
    assert not fleet.rejected
    assert audited(fleet) == 10


def test_a_late_update_that_is_not_one_is_rejected_with_its_reason(fleet: Simulation) -> None:
    slow = fleet.agents[SLOW]
    slow.mangle = lambda offer, payload: (replace(offer, examples=0), payload)
    fleet.until(lambda: bool(slow.settled))
    assert [r.reason for r in slow.settled.values()] == ["examples"]
    assert [(r.device, r.round, r.reason) for r in fleet.rejected] == [(SLOW, 1, "examples")]
    assert SLOW not in fleet.coordinator._course.carried
    fleet.finish()


def test_killed_and_started_again_a_coordinator_still_knows_who_is_late(fleet: Simulation) -> None:
    fleet.until(lambda: len(fleet.committed) == 4)
    fleet.kill()
    fleet.start()
    assert list(fleet.coordinator._course.carried) == [SLOW]
    fleet.until(lambda: bool(fleet.agents[SLOW].settled))
    assert not told(fleet, SLOW, Withdraw), "its hello named the task that it holds"
    fleet.finish()
    assert fates(fleet, SLOW)[0][0] == 1
    assert fleet.agents[SLOW].updates == len(fates(fleet, SLOW))
    assert audited(fleet) == 10


def test_a_transfer_that_is_under_way_when_its_round_closes_goes_on(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, slow_s=10.5, parameters=600_000)
    slow = fleet.agents[SLOW]
    fleet.until(lambda: slow.chunks_sent > 20)
    fleet.broker.cut(SLOW)
    fleet.until(lambda: len(fleet.committed) == 2)
    fleet.broker.restore(SLOW)
    fleet.until(lambda: bool(slow.settled))
    assert [r.verdict for r in slow.settled.values()] == ["accepted"]
    assert slow.chunks_sent <= -(-600_000 * 4 // CHUNK_BYTES) + 1 + WINDOW, "what had come was not sent again"
    fleet.store.close()


def test_the_run_ends_with_a_fate_for_every_update_and_no_device_at_work(fleet: Simulation) -> None:
    fleet.finish()
    fleet.until(lambda: fleet.agents[SLOW].task is None)
    waiting = fleet.store._sql.execute("SELECT count(*) FROM updates WHERE fold IS NULL AND discarded IS NULL")
    assert waiting.fetchone() == (0,)
    assert not fleet.store.carried()


def test_an_older_store_says_of_every_update_which_fold_took_it(fleet: Simulation) -> None:
    fleet.agents["dev-0"].train_s = 5.0
    fleet.until(lambda: len(fleet.committed) == 2 and len(fleet.store.accepted(3)) == 1)
    fleet.kill()
    age(fleet.folder / "state", 6)
    fleet.start()
    found = fleet.store._sql.execute("SELECT round, fold, discount FROM updates ORDER BY round").fetchall()
    assert found == [*[(1, 1, 1.0)] * 3, *[(2, 2, 1.0)] * 3, (3, None, None)]


def test_the_discount_is_the_polynomial_of_the_papers() -> None:
    assert discount(0, 0.5) == 1.0
    assert discount(3, 0.5) == 0.5
    assert discount(8, 0.5) == pytest.approx(1 / 3)
    assert discount(9, 0.0) == 1.0


@pytest.mark.parametrize(
    ("said", "rounds"),
    [
        ("late_hours", {"late_hours": -1.0}),
        ("late_rounds", {"late_rounds": 0}),
        ("late_rounds", {"late_rounds": 501}),
        ("staleness", {"staleness": -0.5}),
        ("mode", {"mode": "async"}),
        ("buffer", {"mode": "buffered"}),
        ("buffer", {"buffer": 2}),
        ("buffer", {"mode": "buffered", "buffer": 4}),
        ("minimum", {"mode": "buffered", "buffer": 2, "minimum": 3}),
        ("over_select", {"mode": "buffered", "buffer": 2, "over_select": 1.3}),
        ("late_hours", {"mode": "buffered", "buffer": 2, "late_hours": 0.0}),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(said: str, rounds: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"^{said}: "):
        RoundSettings(count=3, devices=3, deadline_s=60.0, **rounds)  # type: ignore[arg-type]


def test_a_late_update_does_not_take_a_variance_below_zero_that_those_in_time_have_taken_down_already(
    tmp_path: Path,
) -> None:
    layout = Layout(parameters=(slice(0, 1),), buffers=(slice(1, 2),), digest=bytes(8))
    # The base's variance of 1 went to 0.05 by round 1; what was late for that round says the same once more.
    late, in_time = Weighted("slow", 10, layout, number=1, discount=0.7), Weighted("quick", 10, layout, number=2)
    told = {"slow": -0.95, "quick": 0.01}

    def decode(update: Weighted) -> Decoded:
        return np.ones(1, np.float32), np.array([told[update.device]], np.float32)

    folded = fold([late, in_time], decode, 1, 1)
    assert folded.parameters[0] == pytest.approx((0.7 + 1.0) / 2)
    assert folded.buffers[0] == pytest.approx(0.01)
    robust = robust_fold(FoldSettings(rule="trimmed-mean", trim=0.01), [late, in_time], decode, 1, 1, tmp_path)
    assert robust.buffers[0] == pytest.approx(0.01)
