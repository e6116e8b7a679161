"""A device that may not train: its task is refused or waits, gives its memory back, and goes on to the same bits."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from edge_agent import agent, progress
from edge_agent.eligibility import Conditions, EligibilitySettings
from edge_agent.settings import TrainingSettings
from protocol.messages import Need, Offer, Task, TaskReport, Withdraw
from protocol.transport import MemoryBroker
from tests.agent.child_home import Home
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_agent import Fleet, training_of
from tests.agent.test_progress import TASKS, Make
from tests.tiny import TOTAL, write_bundle, write_shard

MODEL = (np.arange(1, TOTAL + 1) / 10).astype(np.float32)
HOT = Conditions(temperature_c=90.0)
RULES = EligibilitySettings(most_temperature_c=80.0, interval_s=2.0, wait_s=60.0)


@dataclass
class FakeDevice:
    """Is as it is told to be."""

    now: Conditions = Conditions(temperature_c=40.0)  # noqa: RUF009 (frozen)
    written: int | None = 0
    looks: int = 0

    def conditions(self, wall_s: float, *, training: bool) -> Conditions:
        self.looks += 1
        return self.now

    def written_bytes(self) -> int | None:
        return self.written


@dataclass
class Device(Fleet):
    """A fleet of one agent on a made-up device."""

    @property
    def is_(self) -> FakeDevice:
        assert isinstance(self.device, FakeDevice)
        return self.device

    def becomes(self, conditions: Conditions) -> None:
        """The device is so from now on, and the next look is due."""
        self.is_.now = conditions
        self.agent._watch.look_at = self.now

    def waits(self) -> bool:
        return self.agent.job.phase == "waiting"

    def seconds(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.turn()


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """One step a turn, and no checkpoint but those at a pause."""
    monkeypatch.setattr(agent, "SLICE_S", 0.0)
    bundle = write_bundle(tmp_path / "bundle")
    write_shard(tmp_path / "shard.npz")
    broker = MemoryBroker()
    settings = TrainingSettings(checkpoint_s=3600.0, idle_unload_s=5.0)
    made = Device(tmp_path, broker, FakeCoordinator(broker, bundle), None, None, training=settings)  # type: ignore[arg-type]
    made.device, made.eligibility = FakeDevice(), RULES
    made.start(tmp_path)
    yield made
    made.store.close()


def task(fleet: Fleet, number: int = 1, steps: int = 24) -> Task:
    return fleet.coordinator.task(number, MODEL, steps=steps)


def payload(fleet: Fleet) -> bytes:
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())
    return fleet.coordinator.payloads[-1]


def at_step(fleet: Fleet, number: int) -> None:
    fleet.until(lambda: (training := training_of(fleet)) is not None and training.done >= number)


def said(fleet: Fleet) -> list[tuple[str, str, str]]:
    return [(r.state, r.reason, r.detail) for r in fleet.coordinator.reports]


@pytest.mark.parametrize("make", TASKS.values(), ids=TASKS.keys())
def test_a_task_that_is_paused_again_and_again_gives_the_bytes_of_one_that_was_not(fleet: Device, make: Make) -> None:
    fleet.coordinator.say(make(fleet))
    undisturbed = payload(fleet)
    fleet.coordinator.payloads.clear()
    fleet.folder = fleet.folder / "anew"
    fleet.folder.mkdir()
    write_shard(fleet.folder / "shard.npz")
    fleet.restart()
    fleet.coordinator.say(make(fleet))
    for number in (1, 7, 9):
        at_step(fleet, number)
        fleet.becomes(HOT)
        fleet.until(fleet.waits)
        if number == 7:
            fleet.restart()
            fleet.until(fleet.waits)
        fleet.becomes(Conditions(temperature_c=60.0))
    assert payload(fleet) == undisturbed


def test_a_pause_takes_no_step_twice_gives_the_memory_back_and_is_told_with_its_end(
    fleet: Device, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    fleet.coordinator.say(task(fleet))
    at_step(fleet, 5)
    fleet.becomes(HOT)
    fleet.until(fleet.waits)
    assert training_of(fleet) is None
    fleet.seconds(30)
    assert said(fleet) == [("accepted", "", ""), ("accepted", "ineligible", "90 C, over 80 C")]
    fleet.becomes(Conditions(temperature_c=76.0))
    fleet.seconds(10)
    assert fleet.waits(), "within the margin"
    fleet.becomes(Conditions(temperature_c=75.0))
    payload(fleet)
    assert said(fleet)[2:] == [("accepted", "", "")] * 2
    assert fleet.coordinator.reports[-1].examples == 40
    assert "goes on after step=" in caplog.text


def test_a_device_at_rest_is_not_looked_at_and_one_that_waits_only_so_often(fleet: Device) -> None:
    fleet.seconds(100)
    assert fleet.is_.looks == 0
    fleet.becomes(HOT)
    fleet.coordinator.say(task(fleet))
    fleet.until(fleet.waits)
    looks = fleet.is_.looks
    assert fleet.agent.advance(fleet.now) >= 1
    fleet.seconds(20)
    assert 8 <= fleet.is_.looks - looks <= 11


def test_a_task_for_a_device_that_may_not_train_fetches_nothing_and_is_refused_in_the_end(fleet: Device) -> None:
    fleet.becomes(HOT)
    fleet.coordinator.say(task(fleet))
    fleet.until(fleet.waits)
    received = fleet.agent._link.received_bytes
    fleet.seconds(50)
    assert fleet.waits()
    assert fleet.agent._link.received_bytes - received < 1000, "greetings, and no bundle"
    fleet.until(lambda: fleet.agent.job.phase == "idle")
    assert said(fleet) == [("accepted", "ineligible", "90 C, over 80 C"), ("refused", "ineligible", "90 C, over 75 C")]
    assert fleet.now < 70


def test_the_wait_begins_with_the_condition_and_not_with_the_task(fleet: Device) -> None:
    fleet.coordinator.deaf_to = (Need,)
    fleet.coordinator.say(replace(task(fleet), time_left_s=1000.0))
    fleet.until(lambda: fleet.agent.job.phase == "fetching")
    fleet.seconds(RULES.wait_s + 10)
    fleet.becomes(HOT)
    fleet.until(fleet.waits)
    fleet.seconds(RULES.wait_s - 10)
    assert fleet.waits()


def test_a_task_waits_no_longer_than_its_round_lasts(fleet: Device) -> None:
    fleet.becomes(HOT)
    fleet.coordinator.say(replace(task(fleet), time_left_s=10.0))
    fleet.until(lambda: bool(fleet.coordinator.reports) and fleet.agent.job.phase == "idle")
    assert fleet.now < 15


def test_what_is_known_to_last_longer_is_refused_at_once(fleet: Device) -> None:
    fleet.eligibility = replace(RULES, window="22:00-06:00")
    fleet.restart()
    fleet.becomes(Conditions(second_of_day=12 * 3600))
    fleet.coordinator.say(task(fleet))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    assert said(fleet) == [("refused", "ineligible", "it is not 22:00-06:00, for another 600 minutes")]
    fleet.becomes(Conditions(second_of_day=22 * 3600 - 30))
    fleet.coordinator.say(task(fleet, 2))
    fleet.until(fleet.waits)


def test_a_task_that_had_begun_waits_until_it_is_withdrawn(fleet: Device) -> None:
    fleet.coordinator.say(task(fleet))
    at_step(fleet, 5)
    fleet.becomes(HOT)
    fleet.seconds(500)
    assert fleet.waits()
    fleet.coordinator.say(task(fleet, 2))
    fleet.seconds(1)
    assert fleet.coordinator.reports[-1] == TaskReport("run/1", "accepted", 0, "", "ineligible", "90 C, over 80 C")
    assert list((fleet.folder / "state" / "blobs").glob("*.checkpoint"))
    fleet.coordinator.say(Withdraw("run/1", "round-closed"))
    fleet.until(lambda: fleet.agent.job.phase == "idle")
    assert not list((fleet.folder / "state" / "blobs").glob("*.checkpoint"))


def test_a_coordinator_that_did_not_hear_of_the_pause_hears_of_it_when_it_asks_again(fleet: Device) -> None:
    fleet.becomes(HOT)
    fleet.coordinator.say(task(fleet))
    fleet.until(fleet.waits)
    fleet.coordinator.reports.clear()
    fleet.coordinator.say(task(fleet))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    assert said(fleet) == [("accepted", "ineligible", "90 C, over 80 C")]


def test_another_reason_is_told_once(fleet: Device) -> None:
    fleet.eligibility = replace(RULES, least_disk_mib=100)
    fleet.restart()
    fleet.becomes(HOT)
    fleet.coordinator.say(task(fleet))
    fleet.until(fleet.waits)
    fleet.becomes(replace(HOT, temperature_c=91.0, disk_mib=50.0))
    fleet.seconds(20)
    details = [detail for _, _, detail in said(fleet)]
    assert details == ["90 C, over 80 C", "91 C, over 75 C; 50 MiB of disk are free, under 100 MiB"]


def test_a_pause_without_room_for_a_checkpoint_begins_anew_to_the_same_bits(
    fleet: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.coordinator.say(task(fleet))
    undisturbed = payload(fleet)
    fleet.coordinator.payloads.clear()
    monkeypatch.setattr(progress.Progress, "_room", lambda self, size: False)
    fleet.coordinator.say(replace(task(fleet, 2), seed=task(fleet).seed))
    at_step(fleet, 5)
    fleet.becomes(HOT)
    fleet.until(fleet.waits)
    fleet.becomes(Conditions())
    at_step(fleet, 1)
    assert payload(fleet) == undisturbed


def test_a_days_bytes_end_at_midnight_and_hold_back_updates_as_well(
    fleet: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.eligibility = EligibilitySettings(bytes_per_day=100_000, interval_s=30.0, wait_s=60.0)
    monkeypatch.setattr("edge_agent.watch.day_of", lambda wall_s: 100 + int(fleet.now >= 1000))
    fleet.restart()
    fleet.becomes(Conditions(second_of_day=80_000))
    fleet.coordinator.say(task(fleet))
    at_step(fleet, 20)
    assert fleet.agent._link.bytes_both_ways > 100_000
    fleet.until(lambda: bool(fleet.store.outbox()))
    fleet.seconds(200)
    assert not fleet.coordinator.of(Offer)
    fleet.coordinator.say(task(fleet, 2))
    fleet.now = 1000.0
    payload(fleet)


def test_a_days_writes_pause_training_and_survive_a_restart(fleet: Device) -> None:
    fleet.eligibility = EligibilitySettings(writes_mib_per_day=1, interval_s=2.0)
    fleet.restart()
    fleet.becomes(Conditions(second_of_day=86_300))
    fleet.coordinator.say(task(fleet))
    at_step(fleet, 3)
    fleet.is_.written = 1 << 20
    fleet.becomes(fleet.is_.now)
    fleet.until(fleet.waits)
    fleet.is_.written = 0
    fleet.agent.stop()
    fleet.restart()
    fleet.until(fleet.waits)
    assert said(fleet)[-1] == ("accepted", "ineligible", "1 MiB were written today, of 1")


def test_a_system_that_counts_no_writes_trains_on(fleet: Device) -> None:
    fleet.eligibility = EligibilitySettings(writes_mib_per_day=1)
    fleet.restart()
    fleet.is_.written = None
    fleet.coordinator.say(task(fleet))
    payload(fleet)


def test_without_rules_the_device_is_never_looked_at(fleet: Device) -> None:
    fleet.eligibility = EligibilitySettings()
    fleet.restart()
    fleet.becomes(HOT)
    fleet.coordinator.say(task(fleet))
    payload(fleet)
    assert fleet.is_.looks == 0


def test_a_training_process_is_ended_by_a_pause_and_another_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    payloads = []
    for name in ("undisturbed", "paused"):
        (tmp_path / name).mkdir()
        bundle = write_bundle(tmp_path / name / "bundle")
        write_shard(tmp_path / name / "shard.npz")
        broker = MemoryBroker()
        home = Home(tmp_path / name, broker, FakeCoordinator(broker, bundle), None, None)  # type: ignore[arg-type]
        process: Literal["same", "child"] = "same" if name == "undisturbed" else "child"
        home.training, home.eligibility = TrainingSettings(checkpoint_s=0.1, process=process), RULES
        home.device = device = FakeDevice()
        home.start(home.folder)
        home.say(local_steps=40_000)
        home.until(lambda home=home: home.agent.job.phase == "training")  # type: ignore[misc]
        if name == "paused":
            # At the first one something is trained.
            home.until(lambda home=home: home.checkpoints)  # type: ignore[misc]
            device.now = HOT
            home.agent._watch.look_at = home.now
            home.until(lambda home=home: home.agent.job.phase == "waiting")  # type: ignore[misc]
            home.until(lambda home=home: home.children[0].gone(time.monotonic()))  # type: ignore[misc]
            assert len(home.checkpoints) == 1
            device.now = Conditions()
        payloads.append(home.payload())
        home.close()
    assert len(home.children) == 2
    assert payloads[0] == payloads[1]
