"""The coordinator killed between any two of its steps: only time is lost, never an update, never a bit of the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coordinator.store import Store
from protocol.messages import CHUNK_BYTES, WINDOW
from tests.coordinator.simulation import Simulation


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the product catches it."""


def arm(target: Any, method: str, when: str, nth: int) -> Callable[[], bool]:
    """Makes the nth call of a method die before or after its work; the returned function says whether it has."""
    original, calls = getattr(target, method), 0

    def deadly(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == nth and when == "before":
            raise Killed
        result = original(*arguments, **named)
        if calls == nth and when == "after":
            raise Killed
        return result

    setattr(target, method, deadly)
    return lambda: calls >= nth


def run_through(fleet: Simulation, died: Callable[[], bool]) -> None:
    try:
        fleet.finish()
    except Killed:
        fleet.kill()
        fleet.start()
        fleet.finish()
    assert died(), "the failpoint was never reached"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    fleet = Simulation.make(tmp_path_factory.mktemp("undisturbed"))
    fleet.finish()
    model = fleet.model()
    fleet.store.close()
    return model


# Where, and how often it happens in a run of three rounds and three devices.
FAILPOINTS = [
    pytest.param(part, method, when, nth, id=f"{when}-{part}-{method}-{nth}")
    for part, method, calls in (
        ("store", "open_round", (1, 3)),
        ("store", "accept", (1, 2, 3, 4)),
        ("store", "commit_round", (1, 3)),
        ("store", "sweep", (1, 3)),
        ("store", "note", (1, 4)),
        ("store", "put_model", (1, 2, 4)),
        ("updates", "verified", (1, 3)),
        ("updates", "keep", (1, 3)),
        ("reception", "settle", (1, 9)),
        ("updates", "write_chunk", (1, 3)),
        ("updates", "read", (1, 4)),
        ("link", "send", (1, 4, 9)),
        ("link", "tell_everyone", (1, 2)),
    )
    for when in ("before", "after")
    for nth in calls
]


@pytest.mark.parametrize(("part", "method", "when", "nth"), FAILPOINTS)
def test_a_kill_anywhere_costs_only_time(
    part: str, method: str, when: str, nth: int, tmp_path: Path, undisturbed: bytes
) -> None:
    fleet = Simulation.make(tmp_path)
    coordinator = fleet.coordinator
    targets = {
        "store": fleet.store,
        "updates": fleet.store.updates,
        "link": coordinator._link,
        "reception": coordinator._reception,
    }
    run_through(fleet, arm(targets[part], method, when, nth))
    assert fleet.model() == undisturbed
    assert [r[0] for r in fleet.store._sql.execute("SELECT version FROM models ORDER BY version")] == [0, 1, 2, 3]
    assert [len(fleet.store.accepted(n)) for n in (1, 2, 3)] == [3, 3, 3]
    fleet.until(lambda: all(len(a.settled) == 3 for a in fleet.agents.values()))
    for agent in fleet.agents.values():
        assert {r.verdict for r in agent.settled.values()} == {"accepted"}
        assert agent.updates == 3, "nothing was trained twice"
    assert not fleet.rejected
    fleet.store.close()


@pytest.mark.parametrize("method", ["put_model", "add_initial"])
def test_a_kill_in_the_first_start_leaves_a_folder_that_starts(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: Any) -> None:
        raise Killed

    fleet = Simulation.make(tmp_path / "other")
    fleet.kill()
    fleet.folder = tmp_path
    with monkeypatch.context() as patched:
        patched.setattr(Store, method, die)
        with pytest.raises(Killed):
            fleet.start()
    fleet.kill()
    fleet.start()
    fleet.finish()
    fleet.store.close()


def test_a_kill_in_the_middle_of_a_transfer_costs_at_most_a_window_of_each_device(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=1, parameters=300_000)
    chunks = -(-300_000 * 4 // CHUNK_BYTES)
    run_through(fleet, arm(fleet.store.updates, "checkpoint", "after", 1))
    for agent in fleet.agents.values():
        assert agent.updates == 1
        assert chunks < agent.chunks_sent <= chunks + 1 + WINDOW + WINDOW // 2
    assert [len(fleet.store.accepted(1))] == [3]
    assert not list(fleet.store.updates.root.glob("*.part")), "nothing partial is left"
    fleet.store.close()


def test_a_device_cut_off_in_the_middle_of_a_transfer_goes_on_where_it_was(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=1, parameters=300_000)
    chunks = -(-300_000 * 4 // CHUNK_BYTES)
    agent = fleet.agents["dev-0"]
    fleet.until(lambda: agent.chunks_sent > 6)
    fleet.broker.cut("dev-0")
    fleet.turn()
    fleet.broker.restore("dev-0")
    fleet.finish()
    assert agent.chunks_sent <= chunks + 1 + WINDOW
    assert agent.updates == 1
    fleet.store.close()
