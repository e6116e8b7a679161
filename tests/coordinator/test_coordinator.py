"""The coordinator with fake agents over an in-memory broker: rounds to the end, through everything that goes wrong."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.events import DeviceSeen, RoundOpened
from coordinator.reports import Reports
from edge_agent.runtimes.engine import Evaluation
from protocol.envelope import Envelope, encode
from protocol.messages import (
    BlobRef,
    Chunk,
    DeviceState,
    Hello,
    Need,
    Offer,
    Receipt,
    Task,
    TaskReport,
    Unavailable,
    Welcome,
    Withdraw,
)
from protocol.transport import Incoming
from tests.coordinator.simulation import TOPICS, Simulation


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Simulation]:
    simulation = Simulation.make(tmp_path)
    yield simulation
    simulation.store.close()


def bits_after(folder: Path) -> bytes:
    """What an undisturbed run of the same settings ends with."""
    undisturbed = Simulation.make(folder)
    undisturbed.finish()
    model = undisturbed.model()
    undisturbed.store.close()
    return model


def test_rounds_run_to_the_last_and_every_update_has_its_receipt(fleet: Simulation) -> None:
    fleet.finish()
    assert [(c.round, c.version, c.devices) for c in fleet.committed] == [(1, 1, 3), (2, 2, 3), (3, 3, 3)]
    assert fleet.ended is not None
    assert (fleet.ended.reason, fleet.ended.version) == ("rounds", 3)
    fleet.until(lambda: all(len(a.settled) == 3 for a in fleet.agents.values()))
    assert {r.verdict for a in fleet.agents.values() for r in a.settled.values()} == {"accepted"}
    assert not fleet.rejected


def test_it_ends_at_the_target_accuracy(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=50, target_accuracy=0.5)
    # Accuracy that grows by 0.1 with each version that is tried; the exported model is version 0.
    found = iter(Evaluation(1.0, {"accuracy": n / 10}, 10) for n in range(3, 50))
    fleet.kill()
    fleet.examine = lambda model: next(found)
    fleet.start()
    fleet.finish()
    assert fleet.ended is not None
    assert (fleet.ended.reason, fleet.ended.version) == ("target-accuracy", 3)
    assert [c.accuracy for c in fleet.committed] == [0.3, 0.4, 0.5]
    fleet.store.close()


def test_the_next_tasks_go_out_in_the_same_instant_as_the_last_update_came(fleet: Simulation) -> None:
    fleet.until(lambda: bool(fleet.committed))
    kinds = [type(event).__name__ for event in fleet.events if not isinstance(event, DeviceSeen)]
    assert kinds[:3] == ["RoundOpened", "RoundCommitted", "RoundOpened"]
    assert [e.devices for e in fleet.events if isinstance(e, RoundOpened)] == [3, 3]


def test_frozen_tensors_stay_and_buffers_move(fleet: Simulation) -> None:
    fleet.finish()
    model = np.frombuffer(fleet.model(), "<f4")
    assert (model[-2:] == 3.0).all()
    assert (model[20:23] != 2.0).all()
    assert (model[:20] != 1.0).all()


def test_two_runs_of_the_same_settings_end_with_the_same_bits(tmp_path: Path) -> None:
    assert bits_after(tmp_path / "a") == bits_after(tmp_path / "b")


def test_an_offer_sent_twice_gets_the_same_receipt_and_counts_once(fleet: Simulation) -> None:
    agent = fleet.agents["dev-0"]
    fleet.until(lambda: bool(agent.settled))
    first = next(body for body in agent.heard if isinstance(body, Receipt))
    rows = fleet.store.accepted(1)
    offer = settled_offer(fleet, "dev-0")
    before = len([b for b in agent.heard if isinstance(b, Receipt)])
    agent.send(offer)
    agent.send(offer)
    fleet.until(lambda: len([b for b in agent.heard if isinstance(b, Receipt)]) >= before + 2)
    assert [b for b in agent.heard if isinstance(b, Receipt) and b.task == first.task][-1] == first
    assert fleet.store.accepted(1)[: len(rows)] == rows
    assert not fleet.rejected


def settled_offer(fleet: Simulation, device: str) -> Offer:
    """A device's offer for round 1, from what the store has of it."""
    row = fleet.store._sql.execute(
        "SELECT digest, size, round, update_boot, update_sequence, examples, steps, loss, train_s, codec "
        "FROM updates WHERE device = ? AND round = 1",
        (device,),
    ).fetchone()
    base = fleet.store._sql.execute("SELECT digest FROM models WHERE version = 0").fetchone()[0]
    return Offer(BlobRef(row[0], row[1]), fleet.store.run, row[2], row[3], row[4], base, *row[5:])


def test_a_device_cut_off_mid_round_comes_back_and_delivers(fleet: Simulation, tmp_path: Path) -> None:
    fleet.until(lambda: fleet.agents["dev-1"].task is not None)
    fleet.broker.cut("dev-1")
    for _ in range(20):
        fleet.turn()
    assert not fleet.committed
    fleet.broker.restore("dev-1")
    fleet.finish()
    assert [c.devices for c in fleet.committed] == [3, 3, 3]
    assert fleet.model() == bits_after(tmp_path / "other")


def test_a_device_that_forgot_its_task_is_sent_it_again(fleet: Simulation) -> None:
    agent = fleet.agents["dev-1"]
    agent.silent = True
    fleet.until(lambda: any(isinstance(b, Task) for b in agent.heard) and agent.fetching is None)
    agent.silent = False
    agent.heard.clear()
    agent.restart()
    fleet.until(lambda: any(isinstance(b, Task) for b in agent.heard))
    fleet.finish()


def test_a_task_nobody_answers_is_said_again(fleet: Simulation) -> None:
    agent = fleet.agents["dev-1"]
    agent.begin = lambda task: None  # type: ignore[method-assign]
    fleet.until(lambda: len([b for b in agent.heard if isinstance(b, Task)]) >= 3)
    tasks = [b for b in agent.heard if isinstance(b, Task)]
    assert tasks[0].time_left_s > tasks[-1].time_left_s > 0
    assert {t.name for t in tasks} == {tasks[0].name}


def test_an_offer_of_an_earlier_round_does_not_pass_for_an_answer_to_the_task(fleet: Simulation) -> None:
    agent = fleet.agents["dev-1"]
    fleet.until(lambda: bool(fleet.committed))
    agent.begin = lambda task: None  # type: ignore[method-assign]
    agent.task = agent.fetching = None
    fleet.until(lambda: any(isinstance(b, Task) and b.round == 2 for b in agent.heard))
    agent.heard.clear()
    agent.send(settled_offer(fleet, "dev-1"))
    sent_at = fleet.now
    fleet.until(lambda: any(isinstance(b, Task) and b.round == 2 for b in agent.heard))
    # Long before the deadline, which would say it again in any case.
    assert fleet.now - sent_at < fleet.settings.rounds.deadline_s / 2


def test_a_device_that_refuses_is_replaced_and_counted_out(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=1)
    refuses = "dev-0"
    fleet.agents[refuses].answer_state = "refused"
    fleet.until(lambda: len(fleet.store.accepted(1)) == 2)
    fleet.add("dev-9")
    fleet.finish()
    assert fleet.committed[0].devices == 3
    with Reports(tmp_path / "state") as reports:
        rows = {row.device: row for row in reports.round(1).devices}
    assert (rows[refuses].phase, rows[refuses].reason, rows[refuses].detail) == ("out", "refused: test", "told to")
    fleet.store.close()


def test_with_nobody_left_to_ask_the_minimum_is_enough_before_the_deadline(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=1, minimum=2)
    fleet.agents["dev-0"].answer_state = "failed"
    fleet.finish()
    assert fleet.committed[0].devices == 2
    assert fleet.now < 150
    fleet.store.close()


def test_over_selected_devices_are_withdrawn_when_the_goal_is_reached(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, devices=4, count=1, over_select=1.3, minimum=3)
    fleet.agents["dev-3"].silent = True
    fleet.until(lambda: len(fleet.coordinator._fleet.present()) == 4)
    fleet.finish()
    fleet.until(lambda: any(isinstance(b, Withdraw) for b in fleet.agents["dev-3"].heard))
    assert fleet.committed[0].devices == 3
    fleet.store.close()


def test_a_deadline_with_the_minimum_closes_the_round(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=1, minimum=2, deadline_s=30.0)
    fleet.agents["dev-2"].silent = True
    fleet.finish()
    assert fleet.committed[0].devices == 2
    assert fleet.now >= 130
    fleet.store.close()


def test_a_deadline_with_too_few_extends_asks_others_and_keeps_what_came(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=1, deadline_s=30.0)
    fleet.agents["dev-2"].silent = True
    fleet.until(lambda: len(fleet.store.accepted(1)) == 2)
    kept = fleet.store.accepted(1)
    fleet.until(lambda: fleet.now > 135)
    fleet.add("dev-9")
    fleet.finish()
    assert [u.device for u in fleet.store.accepted(1)] == ["dev-0", "dev-1", "dev-9"]
    assert fleet.store.accepted(1)[:2] == kept
    with Reports(tmp_path / "state") as reports:
        detail = reports.round(1)
    assert detail.figures is not None
    assert detail.figures.extensions >= 1
    assert "dev-2" in detail.decisions[0]
    assert {row.device: row.reason for row in detail.devices}["dev-2"] == "run-over"
    fleet.store.close()


def test_a_late_update_is_rejected_as_round_closed(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=1, minimum=2, deadline_s=30.0)
    slow = fleet.agents["dev-2"]
    fleet.until(lambda: slow.task is not None)
    fleet.broker.cut("dev-2")
    fleet.finish()
    # It kept on training while it was cut off, and saw no withdrawal.
    for index in range(slow.task.model.chunks if slow.task else 0):
        data = fleet.store.models.read_chunk(slow.task.model.digest, index) if slow.task else None
        slow.chunks[index] = data or b""
    slow.train(fleet.now)
    fleet.broker.restore("dev-2")
    fleet.until(lambda: bool(slow.settled))
    receipt = next(iter(slow.settled.values()))
    assert (receipt.verdict, receipt.reason) == ("rejected", "round-closed")
    assert [(r.device, r.round, r.reason) for r in fleet.rejected] == [("dev-2", 1, "round-closed")]
    fleet.store.close()


def test_a_coordinator_killed_mid_round_goes_on_with_what_it_accepted(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path / "one")
    fleet.agents["dev-2"].silent = True
    fleet.until(lambda: len(fleet.store.accepted(1)) == 2)
    run, epoch = fleet.store.run, fleet.store.epoch
    fleet.kill()
    fleet.agents["dev-2"].silent = False
    fleet.agents["dev-2"].task = None
    fleet.start()
    assert (fleet.store.run, fleet.store.epoch) == (run, epoch + 1)
    fleet.finish()
    assert [c.devices for c in fleet.committed] == [3, 3, 3]
    assert fleet.model() == bits_after(tmp_path / "two")
    # No device trained a task twice whose update was already accepted.
    assert [fleet.agents[d].updates for d in ("dev-0", "dev-1")] == [3, 3]
    fleet.store.close()


def test_a_finished_run_stays_finished_after_a_restart_and_goes_on_when_rounds_are_added(fleet: Simulation) -> None:
    fleet.finish()
    fleet.kill()
    fleet.start()
    fleet.finish()
    assert len(fleet.committed) == 3
    fleet.kill()
    fleet.settings = replace(fleet.settings, rounds=replace(fleet.settings.rounds, count=4))
    fleet.start()
    fleet.finish()
    assert [c.round for c in fleet.committed] == [1, 2, 3, 4]


def test_devices_fetch_bundle_files_from_disk_and_hear_when_a_blob_is_not_there(fleet: Simulation) -> None:
    fleet.finish()
    agent = fleet.agents["dev-0"]
    digest = bytes.fromhex(fleet.bundle.manifest.file("graph.bin").sha256)
    data = fleet.bundle.path("graph.bin").read_bytes()
    agent.heard.clear()
    agent.send(Need(digest, (1, 0)))
    agent.send(Need(fleet.bundle.digest, (0,)))
    agent.send(Need(bytes(32), (0,)))
    agent.send(Need(digest, (0, 60_000)))
    fleet.until(lambda: len(agent.heard) >= 5)
    chunks = [b for b in agent.heard if isinstance(b, Chunk)]
    assert [(c.index, c.data) for c in chunks[:2]] == [(1, data[65536:]), (0, data[:65536])]
    assert chunks[2].data == (fleet.bundle.root / "manifest.json").read_bytes()
    assert [b.digest for b in agent.heard if isinstance(b, Unavailable)] == [bytes(32), digest]


def test_hello_is_answered_and_stale_work_withdrawn(fleet: Simulation) -> None:
    fleet.finish()
    agent = fleet.agents["dev-0"]
    agent.heard.clear()
    agent.send(Hello("test", "auto", "another/7"))
    fleet.until(lambda: len(agent.heard) >= 2)
    assert isinstance(agent.heard[0], Welcome)
    assert agent.heard[0].run == fleet.store.run
    assert agent.heard[1] == Withdraw("another/7", "round-closed")


def test_a_report_on_a_task_that_is_over_is_answered_with_a_withdrawal(fleet: Simulation) -> None:
    fleet.finish()
    agent = fleet.agents["dev-0"]
    agent.heard.clear()
    agent.send(TaskReport(f"{fleet.store.run}/1", "accepted", 5))
    fleet.until(lambda: bool(agent.heard))
    assert agent.heard == [Withdraw(f"{fleet.store.run}/1", "round-closed")]


def test_a_device_that_waits_with_its_task_is_shown_with_the_reason_until_it_goes_on(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path)
    slow = fleet.agents["dev-2"]
    slow.silent = True
    fleet.until(lambda: slow.task is not None and len(fleet.store.accepted(1)) == 2)
    task = f"{fleet.store.run}/1"
    slow.send(TaskReport(task, "accepted", 0, "", "ineligible", "on battery"))
    fleet.until(lambda: fleet.coordinator._fleet["dev-2"].paused == "on battery")

    def shown() -> tuple[str | None, int | None]:
        fleet.coordinator.stop()
        with Reports(fleet.folder / "state") as reports:
            row = next(row for row in reports.devices() if row.device == "dev-2")
            return row.paused, row.left_out

    assert shown() == ("on battery", 0)
    fleet.kill()
    fleet.start()
    assert fleet.coordinator._fleet["dev-2"].paused == "on battery", "a coordinator that starts again knows it"
    slow.send(TaskReport(task, "accepted", 7, "formula", left_out=3))
    fleet.until(lambda: fleet.coordinator._fleet["dev-2"].paused is None)
    assert shown() == (None, 3)
    fleet.store.close()


def test_bytes_are_those_the_senders_counted_over_their_boots(fleet: Simulation) -> None:
    fleet.until(lambda: len(fleet.committed) == 1)
    agent = fleet.agents["dev-0"]
    first = agent.sent_bytes
    agent.restart()
    fleet.finish()
    fleet.turn()
    fleet.coordinator.stop()
    with Reports(fleet.folder / "state") as reports:
        rows = {row.device: row for row in reports.devices()}
        total = reports.status(fleet.settings.rounds)
    assert first < rows["dev-0"].bytes_up <= first + agent.sent_bytes
    assert rows["dev-0"].bytes_up >= agent.sent_bytes
    assert total.bytes_up == sum(r.bytes_up for r in rows.values())
    assert total.bytes_down >= sum(r.bytes_down for r in rows.values()) > 0
    assert sum(c.bytes_up for c in fleet.committed) <= total.bytes_up
    assert all(c.bytes_up > 0 and c.bytes_down > 0 for c in fleet.committed)


def test_presence_follows_state_messages_and_ignores_the_will_of_an_earlier_boot(fleet: Simulation) -> None:
    fleet.finish()
    agent = fleet.agents["dev-0"]
    agent.heard.clear()
    agent.restart()
    fleet.until(lambda: any(isinstance(b, Welcome) for b in agent.heard))
    topic = TOPICS.device("dev-0", "state")
    fleet.coordinator.handle(Incoming(topic, encode(Envelope(1, 0, 0, DeviceState("lost")))), fleet.now)
    assert "dev-0" in fleet.coordinator._fleet.present()
    fleet.coordinator.handle(Incoming(topic, encode(Envelope(2, 9, 0, DeviceState("gone")))), fleet.now)
    assert "dev-0" not in fleet.coordinator._fleet.present()


def test_the_coordinator_in_memory_can_be_had_again_from_the_store(fleet: Simulation) -> None:
    fleet.agents["dev-2"].silent = True
    fleet.until(lambda: len(fleet.store.accepted(1)) == 2)
    fleet.coordinator.recover(fleet.now)
    fleet.agents["dev-2"].silent = False
    fleet.agents["dev-2"].restart()
    fleet.finish()
    assert [c.devices for c in fleet.committed] == [3, 3, 3]


def test_a_device_whose_disk_was_replaced_counts_from_one_and_is_still_seen_to_leave(
    fleet: Simulation,
) -> None:
    fleet.finish()
    agent = fleet.agents["dev-0"]
    for boot in (9, 1):
        agent.heard.clear()
        agent.boot = boot - 1
        agent.restart()
        fleet.until(lambda: any(isinstance(b, Welcome) for b in agent.heard))
    fleet.broker.cut("dev-0")
    fleet.until(lambda: "dev-0" not in fleet.coordinator._fleet.present())


def test_an_offer_of_an_earlier_round_does_not_silence_the_task_of_this_one(fleet: Simulation) -> None:
    agent, kept = fleet.agents["dev-0"], []

    def keep(offer: Offer, payload: bytes) -> tuple[Offer, bytes]:
        kept.append(offer)
        return offer, payload

    agent.mangle = keep
    fleet.until(lambda: len(fleet.committed) == 1)
    agent.silent = True
    fleet.until(lambda: fleet.coordinator._course.round is not None and fleet.coordinator._course.round.number == 2)
    retry = dict(fleet.coordinator._course.asking._retry)
    assert "dev-0" in retry
    fleet.coordinator.handle(Incoming(TOPICS.device("dev-0", "up"), encode(Envelope(1, 99, 0, kept[0]))), fleet.now)
    assert fleet.coordinator._course.asking._retry.get("dev-0") == retry["dev-0"]
