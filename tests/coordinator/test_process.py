"""The loop of the process: a fault of our own costs a traceback, not the run; too many in a row end it."""

import errno
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator import process
from coordinator.broker import Broker
from protocol.errors import ConfigurationError, SparsefleetError
from protocol.transport import Event
from tests.coordinator.simulation import Simulation

BROKER = Broker("mqtt://127.0.0.1:1883", "in memory")


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    monkeypatch.setattr(process, "PAUSE_AFTER_FAULT_S", 0.0)
    simulation = Simulation.make(tmp_path)
    yield simulation
    simulation.store.close()


@pytest.fixture
def signals() -> Iterator[process.Signals]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield process.Signals()
    for number, handler in before.items():
        signal.signal(number, handler)


class Polled:
    """A transport that lets the agents work whenever the coordinator waits."""

    def __init__(self, fleet: Simulation) -> None:
        self.fleet = fleet

    def poll(self, timeout_s: float) -> Event | None:
        for agent in self.fleet.agents.values():
            agent.work(self.fleet.now)
        self.fleet.now += 0.01
        return self.fleet.transport.poll(timeout_s)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        return self.fleet.transport.publish(topic, payload, retain=retain)

    def close(self) -> None:
        self.fleet.transport.close()


def failing(original: Any, calls: set[int], error: Exception) -> Any:
    """The function, but with an error at these of its calls."""
    seen = 0

    def maybe(*arguments: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen in calls:
            raise error
        return original(*arguments)

    return maybe


def test_faults_are_logged_and_the_run_goes_on_to_its_end(
    fleet: Simulation, signals: process.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    faulty: Any = fleet.coordinator
    faulty.handle = failing(faulty.handle, {5, 30, 31}, RuntimeError("a bug"))
    process._loop(faulty, Polled(fleet), BROKER, signals, exit_when_finished=True)
    assert [c.devices for c in fleet.committed] == [3, 3, 3]
    assert [r.message for r in caplog.records if r.exc_info].count("internal fault 1; going on from the store") == 2


def test_the_same_fault_again_and_again_ends_the_run_with_its_text(fleet: Simulation, signals: process.Signals) -> None:
    faulty: Any = fleet.coordinator
    faulty.advance = failing(faulty.advance, set(range(100)), SparsefleetError("no disk left"))
    with pytest.raises(SparsefleetError, match="5 faults in a row, the last: no disk left"):
        process._loop(faulty, Polled(fleet), BROKER, signals, exit_when_finished=True)


def test_what_the_operator_must_mend_is_not_tried_again(fleet: Simulation, signals: process.Signals) -> None:
    faulty: Any = fleet.coordinator
    faulty.advance = failing(faulty.advance, {1}, ConfigurationError("a setting"))
    with pytest.raises(ConfigurationError, match="a setting"):
        process._loop(faulty, Polled(fleet), BROKER, signals, exit_when_finished=True)


def test_a_signal_ends_the_loop_after_the_work_in_hand(fleet: Simulation, signals: process.Signals) -> None:
    signal.raise_signal(signal.SIGTERM)
    process._loop(fleet.coordinator, Polled(fleet), BROKER, signals, exit_when_finished=True)
    assert not fleet.committed


def test_a_full_disk_is_waited_for_and_said_without_a_flood(
    fleet: Simulation, signals: process.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    store: Any = fleet.store
    full = OSError(errno.ENOSPC, "No space left on device")
    store.put_model = failing(store.put_model, set(range(1, 30)), full)
    process._loop(fleet.coordinator, Polled(fleet), BROKER, signals, exit_when_finished=True)
    assert [c.devices for c in fleet.committed] == [3, 3, 3]
    said = [r.message for r in caplog.records if "No space left" in r.message]
    assert 1 <= len(said) <= 5
    assert "free disk space" in said[0]
    assert not [r for r in caplog.records if r.exc_info]


def test_a_payload_that_vanished_before_its_round_closed_ends_the_run_with_its_name_and_a_remedy(
    fleet: Simulation, signals: process.Signals
) -> None:
    fleet.agents["dev-2"].silent = True
    fleet.until(lambda: len(fleet.store.accepted(1)) == 2)
    lost = fleet.store.updates.path(fleet.store.accepted(1)[0].digest)
    lost.unlink()
    fleet.agents["dev-2"].silent = False
    fleet.agents["dev-2"].restart()
    with pytest.raises(SparsefleetError, match=f"^{lost}: is gone; restore the state"):
        process._loop(fleet.coordinator, Polled(fleet), BROKER, signals, exit_when_finished=True)
