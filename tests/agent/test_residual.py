"""What codecs left out: carried on from update to update, and dropped where it is stale; see `carried_on`."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.settings import TrainingSettings
from edge_agent.store import AgentStore
from edge_agent.update import carried_on
from protocol.messages import Task
from tests.agent.test_job import task
from tests.agent.test_store import LAYOUT, offer, reopen
from tests.agent.test_variants import ONES, finish, made

LEFT = [1.0, -2.0]


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    """With what an accepted update of round 10 left out."""
    made = AgentStore(tmp_path, 1 << 20)
    settle(made, 10, LEFT)
    yield made
    made.close()


def settle(store: AgentStore, round_: int, left: list[float], *, accepted: bool = True, run: str = "run") -> None:
    kept = replace(offer(store, bytes([round_]), round_), run=run)
    store.keep_update(kept, LAYOUT, np.array(left, np.float32))
    store.settle(kept.blob.digest, kept.task, accepted=accepted, reason="")


def carried(store: AgentStore, said: Task, most_missed: int = 50) -> list[float]:
    found: list[float] = carried_on(store, LAYOUT, 2, said, most_missed).tolist()
    return found


@pytest.mark.parametrize(("round_", "kept"), [(11, True), (12, True), (14, True), (15, False), (100, False)])
def test_it_is_carried_on_over_so_many_missed_rounds_and_no_more(store: AgentStore, round_: int, kept: bool) -> None:
    assert carried(store, task(round_), most_missed=3) == (LEFT if kept else [0, 0])


def test_with_none_forgiven_it_is_carried_on_from_round_to_round_alone(store: AgentStore) -> None:
    assert carried(store, task(11), most_missed=0) == LEFT
    assert carried(store, task(12), most_missed=0) == [0, 0]


def test_it_outlives_a_restart_and_so_does_its_age(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    settle(store, 10, LEFT)
    store = reopen(store)
    assert carried(store, task(61)) == LEFT
    assert carried(store, task(62)) == [0, 0]
    store.close()


def test_another_run_begins_without_it_and_the_log_says_so(store: AgentStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert carried(store, task(11, run="another")) == [0, 0]
    assert "residual of run=run is not carried on" in caplog.text


def test_what_is_stale_is_said_with_its_age_and_the_limit(store: AgentStore, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    carried(store, task(100))
    assert "missed=89, residual_rounds=50" in caplog.text


def test_a_change_of_codec_takes_nothing_from_it(store: AgentStore) -> None:
    for codec in ("all/float32", "topk:0.01/ternary", "all/drive"):
        assert carried(store, replace(task(11), codec=codec)) == LEFT


def test_what_is_stale_goes_with_the_accepted_update_that_did_without_and_not_before(store: AgentStore) -> None:
    assert carried(store, task(100)) == [0, 0]
    assert store.residual(LAYOUT, 2).tolist() == LEFT
    settle(store, 100, [5.0, 5.0], accepted=False)
    assert store.residual(LAYOUT, 2).tolist() == LEFT
    assert store.residual_from(LAYOUT) == ("run", 10)
    settle(store, 101, [3.0, 4.0])
    assert carried(store, task(102)) == [3.0, 4.0]


def test_one_that_an_older_agent_left_is_carried_on(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    settle(store, 10, LEFT)
    with store.database:
        for column in ("run", "round"):
            store.database.execute(f"ALTER TABLE residual DROP COLUMN {column}")
        store.database.execute("ALTER TABLE outbox DROP COLUMN momentum")
        store.database.execute("DROP TABLE momentum")
        store.database.execute("UPDATE meta SET value = 1 WHERE key = 'schema'")
    store = reopen(store)
    assert carried(store, task(100)) == LEFT
    settle(store, 100, [3.0, 4.0])
    assert store.residual_from(LAYOUT) == ("run", 100)
    store = reopen(store)
    assert carried(store, task(101)) == [3.0, 4.0]
    store.close()


@pytest.mark.parametrize(("forgiven", "kept"), [(0, False), (1, True)])
def test_an_agent_goes_by_its_setting_after_a_restart_too(forgiven: int, kept: bool, tmp_path: Path) -> None:
    def trained(folder: Path, *rounds: int) -> bytes:
        """The last payload of a device that took part in these rounds, dense, so that it has all that is carried on."""
        folder.mkdir()
        fleet = made(folder)
        fleet.training = TrainingSettings(residual_rounds=forgiven)
        for done, number in enumerate(rounds, 1):
            fleet.restart()
            codec = "all/float32" if number == rounds[-1] else "topk:0.3/float32"
            fleet.coordinator.say(fleet.coordinator.task(number, ONES, codec=codec))
            finish(fleet, done)
        fleet.store.close()
        return fleet.coordinator.payloads[-1]

    assert (trained(tmp_path / "a", 1, 3) != trained(tmp_path / "b", 3)) == kept


def test_a_bad_limit_is_named() -> None:
    with pytest.raises(ValueError, match="residual_rounds: -1 is outside"):
        TrainingSettings(residual_rounds=-1)
