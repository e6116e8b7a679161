"""A new bundle on a device: it passes its trial and work goes on, or the device says so and stays on the one before."""

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtimes import backends
from edge_agent.runtimes.backends import BackendEntry
from edge_agent.runtimes.engine import Batch, Engine, StepResult, Vector
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.settings import TrainingSettings
from edge_agent.slots import Slots
from edge_agent.trial import software
from protocol.bundle import Bundle
from protocol.errors import BundleError, DataError
from protocol.manifest import MANIFEST_FILE
from protocol.messages import Need, Task, TaskReport, Withdraw
from protocol.transport import MemoryBroker
from tests.agent.fake_coordinator import RUN, FakeCoordinator
from tests.agent.test_agent import ZEROS, Fleet
from tests.runtimes.test_reference import Wrong
from tests.tiny import write_bundle, write_shard

STEPS = 12
EXPLODED = ZEROS + np.float32(np.inf)


def begun(folder: Path) -> Fleet:
    """A device that is committed to version 1."""
    bundle = write_bundle(folder / "bundle", recorded=True)
    write_shard(folder / "shard.npz")
    broker = MemoryBroker()
    made = Fleet(folder, broker, FakeCoordinator(broker, bundle), None, None)  # type: ignore[arg-type]
    made.start(folder)
    assert train(made, 1) is None
    return made


@pytest.fixture
def fleet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Fleet]:
    caplog.set_level(logging.INFO, "edge-agent")
    made = begun(tmp_path)
    yield made
    made.store.close()


def slots(fleet: Fleet) -> Slots:
    return Slots(fleet.store.database, software())


def states(fleet: Fleet) -> dict[int, str]:
    """By the version of the bundle's line, which is the first byte that differs."""
    return {versions(fleet)[slot.digest]: slot.state for slot in slots(fleet).all()}


def versions(fleet: Fleet) -> dict[bytes, int]:
    return {
        hashlib.sha256((path / MANIFEST_FILE).read_bytes()).digest(): number
        for number, path in (
            (1, fleet.folder / "bundle"),
            (2, fleet.folder / "bundle-2"),
            (3, fleet.folder / "bundle-3"),
        )
        if path.exists()
    }


def folders(fleet: Fleet) -> set[int]:
    """The versions whose files are on the device."""
    names = {path.name for path in (fleet.folder / "state" / "bundles").iterdir()}
    return {number for digest, number in versions(fleet).items() if digest.hex()[:32] in names}


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def used_bytes(fleet: Fleet) -> int:
    return bytes_of(fleet.folder / "state" / "bundles") + bytes_of(fleet.folder / "state" / "blobs")


def release(fleet: Fleet, version: int) -> None:
    """The coordinator has another bundle from now on."""
    folder = fleet.folder / ("bundle" if version == 1 else f"bundle-{version}")
    if not folder.exists():
        write_bundle(folder, version=version, recorded=True)
    fleet.coordinator.bundle = replace(fleet.coordinator.bundle, root=folder)
    for path in folder.rglob("*"):
        if path.is_file():
            fleet.coordinator.add(path.read_bytes())


def task(fleet: Fleet, round_: int) -> Task:
    return fleet.coordinator.task(round_, ZEROS + round_, steps=STEPS)


def train(fleet: Fleet, round_: int, model: int | None = None) -> TaskReport | None:
    """Has the device do a task, on the model of that round or another; the report that ended it, or None where its
    update came."""
    fleet.coordinator.heard.clear()
    sent = len(fleet.coordinator.payloads)
    said = task(fleet, round_)
    fleet.coordinator.say(said if model is None else replace(said, model=task(fleet, model).model))
    fleet.until(
        lambda: ended(fleet) is not None or (len(fleet.coordinator.payloads) > sent and not fleet.store.outbox())
    )
    return ended(fleet)


def ended(fleet: Fleet) -> TaskReport | None:
    return next((report for report in fleet.coordinator.reports if report.state != "accepted"), None)


def bad(monkeypatch: pytest.MonkeyPatch, make: Callable[[Bundle], Engine]) -> None:
    """What version 2 is run by."""

    def opened(bundle: Bundle, variant: str, threads: int) -> Engine:
        return make(bundle) if bundle.manifest.version == 2 else NumpyEngine(bundle)

    monkeypatch.setattr(backends, "BACKENDS", {"numpy": BackendEntry(lambda: None, opened)})


@dataclass
class Turning:
    """Becomes NaN in a step of training; the record is compared by the first step of all."""

    engine: NumpyEngine
    at: int
    part: str = "gradient"
    name: str = "numpy"
    taken: int = -1

    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        self.taken += 1
        result = self.engine.step(model, batch, seed)
        if self.taken < self.at:
            return result
        if self.part == "loss":
            return replace(result, loss=float("inf"))
        return replace(result, gradient=np.full_like(result.gradient, np.nan))

    def evaluate(self, model: Vector, batch: Batch):  # type: ignore[no-untyped-def]
        return self.engine.evaluate(model, batch)


def unloadable(_: Bundle) -> Engine:
    raise BundleError("train.onnx: no such operator")


BAD: dict[str, tuple[Callable[[Bundle], Engine], str, str]] = {
    "does not load": (unloadable, "refused", "load: backend: none is usable"),
    "is off its record": (Wrong, "refused", "parity: backend: none is usable"),
    "NaN at step 2": (lambda b: Turning(NumpyEngine(b), 2), "failed", "steps: step 2: the loss is"),
    "infinite loss": (lambda b: Turning(NumpyEngine(b), 1, "loss"), "failed", "steps: step 1: the loss is inf"),
}


@pytest.mark.parametrize(("make", "state", "says"), BAD.values(), ids=BAD)
def test_a_bundle_that_fails_its_trial_is_said_and_not_fetched_again_and_the_one_before_goes_on(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, make: Callable[[Bundle], Engine], state: str, says: str
) -> None:
    bad(monkeypatch, make)
    release(fleet, 2)
    report = train(fleet, 2)
    assert report is not None
    assert (report.state, report.reason) == (state, "trial")
    assert says in report.detail
    assert "this device stays on" in report.detail
    assert (states(fleet), folders(fleet)) == ({1: "committed", 2: "failed"}, {1})

    for round_ in (3, 4):
        # What its steps came to holds for the model that they were taken from.
        again = train(fleet, round_, model=2 if says.startswith("steps") else round_)
        assert again is not None
        assert (again.state, again.reason, again.detail) == ("refused", "trial", report.detail)
        assert fleet.coordinator.of(Need) == [], "nothing of it is asked for"
        fleet.restart()

    release(fleet, 1)
    assert train(fleet, 5) is None
    manifest = {e.sha256 for e in fleet.coordinator.bundle.manifest.files}
    needs = {need.digest.hex() for need in fleet.coordinator.of(Need) if isinstance(need, Need)}
    assert not needs & manifest, "the bundle before was still there"
    release(fleet, 3)
    assert train(fleet, 6) is None
    assert states(fleet) == {1: "committed", 2: "failed", 3: "committed"}


def test_a_bundle_that_passes_is_committed_in_the_middle_of_its_first_task(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    release(fleet, 2)
    caplog.clear()
    assert train(fleet, 2) is None
    assert states(fleet) == {1: "committed", 2: "committed"}
    assert folders(fleet) == {1, 2}
    assert "trial begins bundle=" in caplog.text
    assert "trial passed: committed bundle=" in caplog.text
    assert "steps=3" in caplog.text
    release(fleet, 3)
    assert train(fleet, 3) is None
    assert (states(fleet), folders(fleet)) == ({2: "committed", 3: "committed"}, {1, 2, 3})
    assert train(fleet, 4) is None
    assert folders(fleet) == {2, 3}


def test_a_trial_changes_no_bit_of_the_update(fleet: Fleet) -> None:
    release(fleet, 2)
    for round_ in (2, 3):
        fleet.coordinator.heard.clear()
        fleet.coordinator.say(replace(task(fleet, 2), round=round_))
        fleet.until(lambda r=round_: len(fleet.coordinator.payloads) == r and not fleet.store.outbox())  # type: ignore[misc]
    assert fleet.coordinator.payloads[1] == fleet.coordinator.payloads[2]


def test_a_task_of_fewer_steps_than_a_trial_is_a_whole_trial(fleet: Fleet) -> None:
    release(fleet, 2)
    fleet.coordinator.say(fleet.coordinator.task(2, ZEROS, steps=1))
    fleet.until(lambda: len(fleet.coordinator.payloads) == 2)
    assert states(fleet) == {1: "committed", 2: "committed"}


def test_what_turns_bad_after_the_trial_is_the_tasks_own_failure(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    bad(monkeypatch, lambda bundle: Turning(NumpyEngine(bundle), 4))
    release(fleet, 2)
    report = train(fleet, 2)
    assert report is not None
    assert (report.state, report.reason) == ("failed", "diverged")
    assert states(fleet) == {1: "committed", 2: "committed"}


def test_a_rate_that_makes_a_sound_bundle_diverge_does_not_condemn_it(fleet: Fleet) -> None:
    release(fleet, 2)
    fleet.coordinator.heard.clear()
    fleet.coordinator.say(replace(task(fleet, 2), learning_rate=3e38))
    fleet.until(lambda: bool([r for r in fleet.coordinator.reports if r.reason == "trial"]))
    assert states(fleet) == {1: "committed", 2: "failed"}
    assert train(fleet, 3) is None
    assert states(fleet) == {1: "committed", 2: "committed"}


def test_a_model_that_exploded_does_not_condemn_the_bundle_for_the_one_after_it(fleet: Fleet) -> None:
    release(fleet, 2)
    fleet.coordinator.heard.clear()
    fleet.coordinator.say(fleet.coordinator.task(2, EXPLODED, steps=STEPS))
    fleet.until(lambda: bool([r for r in fleet.coordinator.reports if r.reason == "trial"]))
    assert states(fleet) == {1: "committed", 2: "failed"}
    assert train(fleet, 3) is None
    assert states(fleet) == {1: "committed", 2: "committed"}


def test_bad_data_and_a_withdrawn_task_say_nothing_of_the_bundle(fleet: Fleet) -> None:
    release(fleet, 2)
    (fleet.folder / "shard.npz").rename(fleet.folder / "away.npz")
    for round_ in (2, 3, 4):
        report = train(fleet, round_)
        assert report is not None
        assert report.reason == "data"
    (fleet.folder / "away.npz").rename(fleet.folder / "shard.npz")
    for round_ in (5, 6, 7):
        fleet.coordinator.heard.clear()
        fleet.coordinator.say(replace(task(fleet, round_), local_steps=1_000_000))
        fleet.until(lambda: fleet.agent.job.phase == "training" or fleet.agent.job.phase == "idle")
        fleet.coordinator.say(Withdraw(f"{RUN}/{round_}", "round-closed"))
        fleet.until(lambda: fleet.agent.job.phase == "idle")
    assert states(fleet)[2] != "failed"
    assert train(fleet, 8) is None


def test_a_process_that_dies_twice_in_the_trial_fails_it_at_its_next_start(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Death(BaseException):
        pass

    def die(_: Bundle) -> Engine:
        raise Death

    bad(monkeypatch, die)
    release(fleet, 2)
    fleet.coordinator.heard.clear()
    fleet.coordinator.say(task(fleet, 2))
    for _ in range(2):
        with pytest.raises(Death):
            fleet.until(lambda: False)
        fleet.restart()
    fleet.until(lambda: bool(fleet.coordinator.reports))
    report = fleet.coordinator.reports[-1]
    assert (report.state, report.reason) == ("refused", "trial")
    assert "died: 2 trials did not come to an end: the process was killed, ran out of memory or" in report.detail
    assert states(fleet) == {1: "committed", 2: "failed"}
    release(fleet, 1)
    assert train(fleet, 3) is None


def test_a_fault_inside_the_trial_counts_as_a_death(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass
    class Faulty(Turning):
        def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
            if self.taken == 0:
                raise RuntimeError("the runtime fails inside")
            return super().step(model, batch, seed)

    bad(monkeypatch, lambda bundle: Faulty(NumpyEngine(bundle), 99))
    release(fleet, 2)
    reasons = []
    for round_ in (2, 3, 4):
        fleet.coordinator.heard.clear()
        fleet.coordinator.say(task(fleet, round_))
        try:
            fleet.until(lambda: bool(fleet.coordinator.reports) and fleet.agent.job.phase == "idle")
        except RuntimeError as error:
            fleet.agent.fail("internal", f"RuntimeError: {error}")
        fleet.until(lambda: fleet.coordinator.reports and fleet.coordinator.reports[-1].state != "accepted")  # type: ignore[arg-type,return-value]
        reasons.append(fleet.coordinator.reports[-1].reason)
    assert reasons == ["internal", "trial", "trial"]
    assert "RuntimeError: the runtime fails inside" in fleet.coordinator.reports[-1].detail


def test_an_agent_that_is_stopped_in_order_takes_its_trial_up_again_however_often(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.agent.SLICE_S", 0.0)
    release(fleet, 2)
    fleet.coordinator.say(task(fleet, 2))
    for _ in range(4):
        fleet.until(lambda: fleet.agent.job.phase == "training")
        fleet.agent.stop()
        fleet.restart()
    fleet.until(lambda: len(fleet.coordinator.payloads) == 2 and not fleet.store.outbox())
    assert states(fleet) == {1: "committed", 2: "committed"}


def test_a_trial_that_an_operator_ends_while_it_runs_ends_its_task(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.agent.SLICE_S", 0.0)
    release(fleet, 2)
    fleet.coordinator.heard.clear()
    fleet.coordinator.say(task(fleet, 2))
    fleet.until(lambda: fleet.agent.job.phase == "training")
    held = slots(fleet)
    held.fail(held.all()[-1].digest, "by hand", "rolled back")
    fleet.until(lambda: fleet.agent.job.phase == "idle")
    report = fleet.coordinator.reports[-1]
    assert (report.state, report.reason) == ("failed", "trial")
    assert "by hand: rolled back" in report.detail


def test_a_backend_that_does_not_load_is_no_failure_where_another_does(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {
        "portable": BackendEntry(lambda: None, lambda bundle, variant, threads: unloadable(bundle)),
        "numpy": BackendEntry(lambda: None, lambda bundle, variant, threads: NumpyEngine(bundle)),
    }
    monkeypatch.setattr(backends, "BACKENDS", entries)
    release(fleet, 2)
    assert train(fleet, 2) is None
    assert slots(fleet).committed()[0].begun == 0


def test_the_slot_before_makes_room_for_a_new_bundle_and_the_committed_one_does_not(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    size = bytes_of(fleet.folder / "state" / "bundles")
    release(fleet, 2)
    assert train(fleet, 2) is None
    # Two bundles fit, and three do not.
    fleet.store.blobs.limit_bytes = int(2.5 * size)
    release(fleet, 3)
    assert train(fleet, 3) is None
    assert states(fleet) == {2: "committed", 3: "committed"}
    assert "is let go: limits.disk_mib has no room for it" in caplog.text

    assert used_bytes(fleet) <= fleet.store.blobs.limit_bytes

    fleet.store.blobs.limit_bytes = int(1.5 * size)
    release(fleet, 1)
    report = train(fleet, 4)
    assert report is not None
    assert report.reason == "disk"
    assert f"beside the bundles that this device holds, {size} bytes, would exceed the limit" in report.detail
    assert states(fleet) == {3: "committed"}
    assert 3 in folders(fleet)


def test_a_commit_that_the_disk_does_not_take_costs_no_work(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.agent.SLICE_S", 0.0)
    commit, tries = Slots.commit, [0]

    def refused(held: Slots, digest: bytes) -> bool:
        tries[0] += 1
        if tries[0] < 2:
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise full
        return commit(held, digest)

    monkeypatch.setattr(Slots, "commit", refused)
    release(fleet, 2)
    assert train(fleet, 2) is None
    assert states(fleet) == {1: "committed", 2: "committed"}


def test_data_that_a_step_refuses_is_the_tasks_failure_first(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Bundle) -> Engine:
        raise DataError("x: an array of another shape")

    bad(monkeypatch, refuse)
    release(fleet, 2)
    report = train(fleet, 2)
    assert report is not None
    assert report.reason == "data"
    assert states(fleet) == {1: "committed", 2: "trial"}


def test_the_number_of_steps_is_a_setting(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    bad(monkeypatch, lambda bundle: Turning(NumpyEngine(bundle), 4))
    fleet.training = TrainingSettings(trial_steps=4)
    fleet.restart()
    release(fleet, 2)
    report = train(fleet, 2)
    assert report is not None
    assert report.reason == "trial"
