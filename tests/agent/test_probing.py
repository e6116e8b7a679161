"""A fleet's agents compare backends with torch's recorded step while they hold the model that it starts from, the first
round's, and remember what came of it."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent.probes import FILE
from protocol.bundle import PARAMETERS_FILE, REFERENCE_FILE
from protocol.messages import Need
from protocol.transport import MemoryBroker
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_agent import ZEROS, Fleet
from tests.runtimes.test_reference import Wrong, installed
from tests.tiny import write_bundle, write_shard


@pytest.fixture
def fleet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Fleet]:
    caplog.set_level(logging.INFO, "edge-agent")
    bundle = write_bundle(tmp_path / "bundle", recorded=True)
    write_shard(tmp_path / "shard.npz")
    broker = MemoryBroker()
    made = Fleet(tmp_path, broker, FakeCoordinator(broker, bundle), None, None)  # type: ignore[arg-type]
    made.start(tmp_path)
    yield made
    made.store.close()


def train(fleet: Fleet, round_: int, by: int) -> None:
    done = len(fleet.coordinator.payloads)
    fleet.coordinator.say(fleet.coordinator.task(round_, ZEROS + by))
    fleet.until(lambda: len(fleet.coordinator.payloads) > done and not fleet.store.outbox())


def record_on_disk(fleet: Fleet) -> bool:
    return any((fleet.folder / "state").rglob(REFERENCE_FILE))


def test_the_first_round_compares_and_later_ones_remember_over_a_restart(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    train(fleet, 1, 0)
    assert "it agrees with torch's recorded step within" in caplog.text
    assert record_on_disk(fleet)
    fleet.restart()
    caplog.clear()
    train(fleet, 2, 1)
    assert "it agreed with torch's recorded step before" in caplog.text
    assert "rejected" not in caplog.text


def test_who_joins_later_fetches_the_record_and_the_exported_model_once_for_its_trial(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    train(fleet, 2, 1)
    assert "it agrees with torch's recorded step within" in caplog.text
    assert record_on_disk(fleet)
    assert (fleet.folder / "state" / FILE).exists()
    parameters = fleet.coordinator.bundle.manifest.file(PARAMETERS_FILE).sha256
    needs = [need.digest.hex() for need in fleet.coordinator.of(Need) if isinstance(need, Need)]
    assert needs.count(parameters) == 1
    caplog.clear()
    fleet.restart()
    # A run that starts over with the exported model: the folder has no record, and that is no damage.
    train(fleet, 3, 0)


def test_a_wrong_runtime_is_refused_in_the_first_round_and_in_every_later_one(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, ("numpy", Wrong))
    for round_ in (1, 2):
        fleet.coordinator.say(fleet.coordinator.task(round_, ZEROS + round_ - 1))
        fleet.until(lambda: bool(fleet.coordinator.reports) and fleet.agent.job.phase == "idle")
        report = fleet.coordinator.reports[-1]
        assert (report.state, report.reason) == ("refused", "trial")
        assert "numpy: it computes something else here: gradient of weight differs from torch's" in report.detail
        fleet.coordinator.heard.clear()
        fleet.restart()
