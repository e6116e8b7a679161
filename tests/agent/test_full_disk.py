"""A disk that is full at any moment of an agent's work: said plainly, nothing lost, and work goes on in time."""

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent import agent, daemon
from edge_agent.settings import TrainingSettings
from edge_agent.store import AgentStore
from protocol.disk import disk_named, is_disk_trouble
from protocol.errors import SparsefleetError
from protocol.messages import Offer, Receipt, TaskReport
from protocol.transport import MemoryBroker
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_agent import Fleet, training_of
from tests.tiny import TOTAL, write_bundle, write_shard

ZEROS = np.zeros(TOTAL, np.float32)


@contextmanager
def full_disk() -> Iterator[None]:
    """The system refuses every write of this process to any file, as it does where there is no room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setattr(agent, "SLICE_S", 0.0)
    bundle = write_bundle(tmp_path / "bundle")
    write_shard(tmp_path / "shard.npz")
    broker = MemoryBroker()
    made = Fleet(tmp_path, broker, FakeCoordinator(broker, bundle), None, None)  # type: ignore[arg-type]
    made.training = TrainingSettings(checkpoint_s=1e-9)
    made.start(tmp_path)
    yield made
    made.store.close()


def turn(fleet: Fleet) -> bool:
    """A turn as the daemon takes it; whether the disk failed."""
    try:
        fleet.turn()
    except (OSError, sqlite3.Error, SparsefleetError) as error:
        if not is_disk_trouble(error):
            raise
        daemon.give_back(fleet.agent, error)
        fleet.now += 1.0
        return True
    return False


@pytest.mark.parametrize("begin", range(0, 16))
def test_an_agent_whose_disk_is_full_for_a_while_delivers_its_task_after_all(fleet: Fleet, begin: int) -> None:
    task = fleet.coordinator.task(1, ZEROS, steps=3)
    fleet.coordinator.say(task)
    for _ in range(begin):
        turn(fleet)
    with full_disk():
        for _ in range(5):
            turn(fleet)
    for _ in range(200):
        if fleet.coordinator.payloads and not fleet.store.outbox():
            break
        if turn(fleet) or any(r.state == "failed" for r in fleet.coordinator.reports):
            # It was given back; the coordinator asks again.
            fleet.coordinator.heard[:] = [b for b in fleet.coordinator.heard if not isinstance(b, TaskReport)]
            fleet.coordinator.say(task)
    assert len(set(fleet.coordinator.payloads)) == 1
    offers = [body for body in fleet.coordinator.heard if isinstance(body, Offer)]
    assert len({(offer.update_boot, offer.update_sequence) for offer in offers}) == 1
    assert fleet.agent.job.phase == "idle"


def test_a_finished_update_waits_for_room_and_is_not_given_back(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS, steps=3))
    fleet.until(lambda: fleet.agent.job.phase == "training" and training_of(fleet).done == 2)  # type: ignore[union-attr]
    with full_disk():
        for _ in range(40):
            turn(fleet)
        assert fleet.agent.job.phase == "packing"
    assert "cannot be kept yet" in caplog.text
    assert "free disk space" in caplog.text
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())
    assert [r.state for r in fleet.coordinator.reports] == ["accepted"]


def test_a_receipt_that_a_full_disk_does_not_take_costs_no_finished_update(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.coordinator.deaf_to = (Offer,)
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS, steps=3))
    fleet.until(lambda: bool(fleet.coordinator.of(Offer)))
    fleet.coordinator.say(fleet.coordinator.task(2, ZEROS + 1, steps=3))
    fleet.until(lambda: fleet.agent.job.phase == "packing")
    (offer, *_), settle, full = fleet.coordinator.of(Offer), fleet.store.settle, [True]
    assert isinstance(offer, Offer)

    def settle_later(*args: Any, **kwargs: Any) -> Any:
        if full:
            full.pop()
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return settle(*args, **kwargs)

    monkeypatch.setattr(fleet.store, "settle", settle_later)
    fleet.coordinator.say(Receipt(offer.blob.digest, offer.task, "accepted"))
    while full:
        turn(fleet)
    assert fleet.agent.job.phase == "packing"
    fleet.coordinator.say(Receipt(offer.blob.digest, offer.task, "accepted"))
    fleet.coordinator.deaf_to = ()
    fleet.until(lambda: len(fleet.coordinator.payloads) == 1 and not fleet.store.outbox())
    assert [report.state for report in fleet.coordinator.reports] == ["accepted", "accepted"]


def test_an_update_over_the_limit_is_given_back_with_its_reason(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS, steps=3))
    fleet.until(lambda: fleet.agent.job.phase == "training")
    fleet.store.blobs.limit_bytes = 1
    fleet.until(lambda: fleet.agent.job.phase == "idle")
    report = fleet.coordinator.reports[-1]
    assert (report.state, report.reason) == ("failed", "disk")
    assert "raise the disk limit" in report.detail


def test_an_agent_that_cannot_begin_on_a_full_disk_says_so_and_leaves_the_folder_usable(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(SparsefleetError, match=r"free disk space"), disk_named(tmp_path):
        AgentStore(tmp_path / "state", 1 << 20)
    AgentStore(tmp_path / "state", 1 << 20).close()
