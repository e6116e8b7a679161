"""The agent over an in-memory broker: tasks done, interruptions survived, bad input answered."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.agent import Agent
from edge_agent.data import Dataset, DataSettings
from edge_agent.eligibility import EligibilitySettings
from edge_agent.link import last_will
from edge_agent.personal.settings import OFF, PersonalSettings
from edge_agent.same_process import SameProcess
from edge_agent.settings import AgentSettings, BrokerSettings, TrainingSettings
from edge_agent.store import AgentStore
from edge_agent.training import LocalTraining
from edge_agent.watch import Source
from protocol.envelope import Envelope, decode
from protocol.layout import layout_of
from protocol.messages import (
    TWO_AGENTS,
    BlobRef,
    Chunk,
    DeviceState,
    Hello,
    Need,
    Offer,
    Receipt,
    Welcome,
    Withdraw,
)
from protocol.transport import Connected, Disconnected, Incoming, MemoryBroker
from sparse.codecs import decode_update
from tests.agent.fake_coordinator import RUN, FakeCoordinator
from tests.tiny import TOTAL, write_bundle, write_shard

DEVICE = "device-01"
ZEROS = np.zeros(TOTAL, np.float32)


@dataclass
class Fleet:
    """One agent, one fake coordinator, one clock."""

    folder: Path
    broker: MemoryBroker
    coordinator: FakeCoordinator
    agent: Agent
    store: AgentStore
    now: float = 0.0
    training: TrainingSettings = TrainingSettings(idle_unload_s=5.0)  # noqa: RUF009 (frozen)
    data: DataSettings = DataSettings(path="shard.npz")  # noqa: RUF009 (frozen)
    eligibility: EligibilitySettings = EligibilitySettings()  # noqa: RUF009 (frozen)
    personal: PersonalSettings = OFF
    device: Source | None = None

    def turn(self) -> None:
        """Both sides handle what has arrived and do what is due; then time moves on."""
        while (event := self.transport.poll(0)) is not None:
            self.agent.handle(event, self.now)
        wait = self.agent.advance(self.now)
        self.coordinator.work(self.now)
        self.now += min(max(wait, 0.01), 1.0)

    def until(self, reached: Callable[[], bool], turns: int = 400) -> None:
        for _ in range(turns):
            if reached():
                return
            self.turn()
        raise AssertionError(f"not reached after {turns} turns; heard {self.coordinator.heard[-5:]}")

    def start(self, folder: Path) -> None:
        settings = AgentSettings(
            device=DEVICE,
            fleet="test",
            state="state",
            broker=BrokerSettings("mqtt://127.0.0.1:1883"),
            data=self.data,
            training=self.training,
            eligibility=self.eligibility,
            personal=self.personal,
        )
        self.store = AgentStore(folder / "state", 1 << 24)
        will = last_will(self.coordinator.topics, DEVICE, self.store.boot)
        self.transport = self.broker.connect(DEVICE, self.coordinator.topics.of_agent(DEVICE), will)
        self.agent = Agent(settings, folder, self.store, self.transport, np.random.default_rng(1), device=self.device)

    def restart(self) -> None:
        """The agent is killed and started again: nothing but its folder survives."""
        self.broker.cut(DEVICE)
        self.store.close()
        self.start(self.folder)


def training_of(fleet: Fleet) -> LocalTraining | None:
    """The local steps of the task in hand, which these agents take in their own process."""
    trainer = fleet.agent._trainer
    assert isinstance(trainer, SameProcess)
    return trainer.training


@pytest.fixture
def fleet(tmp_path: Path):  # type: ignore[no-untyped-def]
    bundle = write_bundle(tmp_path / "bundle")
    write_shard(tmp_path / "shard.npz")
    broker = MemoryBroker()
    coordinator = FakeCoordinator(broker, bundle)
    made = Fleet(tmp_path, broker, coordinator, None, None)  # type: ignore[arg-type]
    made.start(tmp_path)
    yield made
    made.store.close()


def test_an_outage_is_said_once_for_each_of_its_reasons(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    for reason in ("the connection was lost", "certificate revoked", "certificate revoked", "the connection was lost"):
        fleet.agent.handle(Disconnected(reason), fleet.now)
    assert caplog.text.count("certificate revoked") == caplog.text.count("the connection was lost") == 1
    fleet.agent.handle(Connected(), fleet.now)
    fleet.agent.handle(Disconnected("certificate revoked"), fleet.now)
    assert caplog.text.count("certificate revoked") == 2


def test_an_agent_greets_trains_sends_and_settles(fleet: Fleet) -> None:
    fleet.until(lambda: bool(fleet.coordinator.of(Hello)))
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())
    assert [r.state for r in fleet.coordinator.reports] == ["accepted"]
    assert fleet.coordinator.reports[0].examples == 40
    assert fleet.coordinator.reports[0].backend == "numpy"
    layout = layout_of(fleet.coordinator.bundle.manifest, "full").digest
    delta, buffers = decode_update(fleet.coordinator.payloads[0], TOTAL, 0, layout)
    assert delta[0] < 0 < delta[3]  # the weight of the first number parts the classes
    assert len(buffers) == 0
    assert fleet.agent.job.phase == "idle"


def test_the_same_task_and_data_give_the_same_bytes(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: len(fleet.coordinator.payloads) == 1 and not fleet.store.outbox())
    fleet.coordinator.say(replace(fleet.coordinator.task(2, ZEROS), seed=1))
    fleet.until(lambda: len(fleet.coordinator.payloads) == 2)
    assert fleet.coordinator.payloads[0] == fleet.coordinator.payloads[1]


def test_a_bundle_is_fetched_once_and_models_every_round(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: len(fleet.coordinator.payloads) == 1 and not fleet.store.outbox())
    needs = len(fleet.coordinator.of(Need))
    fleet.coordinator.say(fleet.coordinator.task(2, ZEROS + 1))
    fleet.until(lambda: len(fleet.coordinator.payloads) == 2)
    assert len(fleet.coordinator.of(Need)) == needs + 1


def test_an_agent_killed_at_any_turn_still_sends_one_update_for_its_task(fleet: Fleet) -> None:
    task = fleet.coordinator.task(1, ZEROS, steps=20)
    fleet.coordinator.say(task)
    for _ in range(25):
        fleet.turn()
        fleet.restart()
        fleet.coordinator.say(task)
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())
    assert len(set(fleet.coordinator.payloads)) == 1
    names = {(o.update_boot, o.update_sequence) for o in fleet.coordinator.of(Offer) if isinstance(o, Offer)}
    assert len(names) == 1


def test_a_remembered_task_goes_on_after_a_restart_without_being_sent_again(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: fleet.agent.job.phase != "idle")
    fleet.restart()
    fleet.until(lambda: bool(fleet.coordinator.payloads))


def test_an_agent_that_is_told_of_another_by_its_name_says_what_to_do(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.until(lambda: bool(fleet.coordinator.of(Hello)))
    for _ in range(20):
        fleet.coordinator.say(Welcome(RUN, 0.0, TWO_AGENTS))
    fleet.turn()
    said = [record.message for record in caplog.records if "another agent also calls itself" in record.message]
    assert 1 <= len(said) <= 5
    assert "'device-01' in fleet 'test'" in said[0]
    assert "give each a `device` name and a `state` folder of its own" in said[0]


def test_each_start_of_an_agent_says_another_instance_in_all_its_hellos(fleet: Fleet) -> None:
    fleet.until(lambda: len(fleet.coordinator.of(Hello)) == 2)
    fleet.restart()
    fleet.until(lambda: len(fleet.coordinator.of(Hello)) == 3)
    first, second, third = (h.instance for h in fleet.coordinator.of(Hello) if isinstance(h, Hello))
    assert first == second != third
    assert None not in (first, third)


def test_a_cut_link_costs_only_time(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    for _ in range(12):
        fleet.turn()
        fleet.broker.cut(DEVICE)
        fleet.turn()
        fleet.broker.restore(DEVICE)
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())


def test_a_device_at_rest_says_hello_again_so_that_a_late_will_cannot_hide_it(fleet: Fleet) -> None:
    fleet.until(lambda: len(fleet.coordinator.of(Hello)) == 1)
    began = fleet.now
    fleet.until(lambda: len(fleet.coordinator.of(Hello)) == 2)
    assert 100 < fleet.now - began <= 301


def test_an_update_is_offered_until_the_coordinator_hears_it(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.coordinator.deaf_to = (Offer,)
    fleet.until(lambda: bool(fleet.store.outbox()))
    for _ in range(50):
        fleet.turn()
    assert fleet.store.outbox()
    assert len(fleet.coordinator.of(Offer)) > 2
    fleet.coordinator.deaf_to = ()
    fleet.until(lambda: not fleet.store.outbox())


@pytest.mark.parametrize("epochs", [(1, 2), (7, 1)], ids=["restarted", "from a new state folder"])
def test_a_new_epoch_of_the_coordinator_is_greeted_and_offered_to(fleet: Fleet, epochs: tuple[int, int]) -> None:
    fleet.coordinator.epoch = epochs[0]
    fleet.coordinator.announce()
    fleet.until(lambda: bool(fleet.coordinator.of(Hello)))
    for _ in range(5):
        fleet.turn()
    before = len(fleet.coordinator.of(Hello))
    fleet.coordinator.epoch = epochs[1]
    fleet.coordinator.announce()
    fleet.until(lambda: len(fleet.coordinator.of(Hello)) > before)


def test_a_rejected_update_leaves_the_outbox_and_the_residual_alone(fleet: Fleet) -> None:
    layout = layout_of(fleet.coordinator.bundle.manifest, "full").digest
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS, codec="topk:0.3/float32/bitmap"))
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())
    carried = fleet.store.residual(layout, TOTAL)
    assert np.count_nonzero(carried)
    fleet.coordinator.reject = "round-closed"
    fleet.coordinator.say(fleet.coordinator.task(2, ZEROS, codec="topk:0.3/float32/bitmap"))
    fleet.until(lambda: len(fleet.coordinator.payloads) == 2 and not fleet.store.outbox())
    assert fleet.store.residual(layout, TOTAL).tolist() == carried.tolist()


def test_what_was_sent_and_the_residual_add_up_to_what_was_learnt(fleet: Fleet) -> None:
    layout = layout_of(fleet.coordinator.bundle.manifest, "full").digest
    for round_ in (1, 2, 3):
        fleet.coordinator.say(fleet.coordinator.task(round_, ZEROS, codec="topk:0.3/float32/bitmap"))
        fleet.until(lambda r=round_: len(fleet.coordinator.payloads) == r and not fleet.store.outbox())  # type: ignore[misc]
    sparse = sum(decode_update(p, TOTAL, 0, layout)[0].astype(np.float64) for p in fleet.coordinator.payloads)
    residual = fleet.store.residual(layout, TOTAL)
    fleet.coordinator.payloads.clear()
    for round_ in (1, 2, 3):
        fleet.coordinator.say(replace(fleet.coordinator.task(round_ + 3, ZEROS), seed=round_))
        fleet.until(lambda r=round_: len(fleet.coordinator.payloads) == r and not fleet.store.outbox())  # type: ignore[misc]
    # A dense update carries the residual along, so the first one is the difference of everything before.
    dense = sum(decode_update(p, TOTAL, 0, layout)[0].astype(np.float64) for p in fleet.coordinator.payloads)
    np.testing.assert_allclose(sparse + residual, dense - residual, atol=1e-5)


def test_a_task_heard_again_after_its_receipt_is_not_done_twice(fleet: Fleet) -> None:
    task = fleet.coordinator.task(1, ZEROS)
    fleet.coordinator.say(task)
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())
    fleet.coordinator.say(task)
    for _ in range(20):
        fleet.turn()
    assert len(fleet.coordinator.of(Offer)) == 1
    fleet.coordinator.say(fleet.coordinator.task(2, ZEROS))
    fleet.until(lambda: len(fleet.coordinator.payloads) == 2)


def test_a_fault_of_our_own_gives_the_task_back_with_its_reason(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS, steps=100_000))
    fleet.until(lambda: fleet.agent.job.phase == "training")
    fleet.agent.fail("disk", "OSError: no space left")
    fleet.until(lambda: bool([r for r in fleet.coordinator.reports if r.state == "failed"]))
    assert fleet.coordinator.reports[-1].reason == "disk"
    assert fleet.store.task() is None


def test_a_withdrawn_task_is_let_go(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS, steps=100_000))
    fleet.until(lambda: fleet.agent.job.phase == "training")
    fleet.coordinator.say(Withdraw(f"{RUN}/1", "round closed"))
    fleet.until(lambda: fleet.agent.job.phase == "idle")
    assert fleet.store.task() is None


def test_runtime_and_data_are_let_go_after_idling(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())
    caplog.set_level("INFO")
    assert any(type(thing) is Dataset for thing in gc.get_objects())
    fleet.until(lambda: "unloaded" in caplog.text)
    assert not any(type(thing) is Dataset for thing in gc.get_objects())


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.unlink(), "shard.npz"),
        (lambda path: np.savez(path, x=np.full((4, 3), np.nan, np.float32), y=[0, 1, 0, 1]), "nan"),
        (lambda path: np.savez(path, x=np.zeros((4, 3), np.float32), y=[0, 1, 0, 7]), "7"),
        (lambda path: np.savez(path, x=np.zeros((4, 9), np.float32), y=[0, 1, 0, 1]), "9"),
        (lambda path: np.savez(path, x=np.zeros((0, 3), np.float32), y=np.zeros(0, int)), "is empty"),
    ],
)
def test_bad_data_is_reported_and_the_agent_stays(fleet: Fleet, spoil: Callable[[Path], object], says: str) -> None:
    spoil(fleet.folder / "shard.npz")
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    report = fleet.coordinator.reports[0]
    assert (report.state, report.reason) == ("refused", "data")
    assert says in report.detail.lower()
    write_shard(fleet.folder / "shard.npz")
    fleet.coordinator.say(fleet.coordinator.task(2, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.payloads))


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_bytes(b"cut")], ids=["gone", "cut short"])
def test_an_update_whose_payload_was_lost_does_not_hold_back_the_next(
    fleet: Fleet, harm: Callable[[Path], object]
) -> None:
    fleet.coordinator.deaf_to = (Offer,)
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: bool(fleet.store.outbox()))
    harm(fleet.store.blobs.path(fleet.store.outbox()[0].blob.digest))
    fleet.coordinator.deaf_to = ()
    fleet.coordinator.say(fleet.coordinator.task(2, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())


def test_a_bundle_altered_on_this_disk_is_refused_once_and_fetched_again(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())
    graph = next((fleet.folder / "state" / "bundles").glob("*/numpy/graph.bin"))
    graph.write_bytes(bytes(graph.stat().st_size))
    fleet.restart()
    fleet.coordinator.say(fleet.coordinator.task(2, ZEROS))
    fleet.until(lambda: fleet.coordinator.reports[-1].state == "refused")
    assert fleet.coordinator.reports[-1].reason == "bundle"
    fleet.coordinator.say(fleet.coordinator.task(3, ZEROS))
    fleet.until(lambda: len(fleet.coordinator.payloads) == 2)


def test_a_model_damaged_on_this_disk_is_refused_once_and_fetched_again(fleet: Fleet) -> None:
    task = fleet.coordinator.task(1, ZEROS)
    damaged = fleet.store.blobs.path(task.model.digest)
    damaged.write_bytes(b"cut short")
    fleet.coordinator.say(task)
    fleet.until(lambda: bool(fleet.coordinator.reports) and fleet.coordinator.reports[-1].state == "refused")
    assert "fetched again" in fleet.coordinator.reports[-1].detail
    fleet.coordinator.say(fleet.coordinator.task(2, ZEROS))
    fleet.until(lambda: len(fleet.coordinator.payloads) == 1)


def test_a_model_of_the_wrong_size_is_refused_before_a_byte_of_it_is_asked_for(fleet: Fleet) -> None:
    task = fleet.coordinator.task(1, ZEROS)
    wrong = fleet.coordinator.add(bytes(TOTAL * 4 + 4))
    fleet.coordinator.say(replace(task, model=wrong))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    assert fleet.coordinator.reports[0].reason == "model"
    asked = {need.digest for need in fleet.coordinator.of(Need) if isinstance(need, Need)}
    assert wrong.digest not in asked


def test_a_task_over_the_disk_limit_is_refused(fleet: Fleet) -> None:
    fleet.store.blobs.limit_bytes = 2000
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    assert fleet.coordinator.reports[0].reason == "disk"


def test_a_blob_the_coordinator_does_not_have_ends_the_task(fleet: Fleet) -> None:
    task = replace(fleet.coordinator.task(1, ZEROS), manifest=BlobRef(b"?" * 32, 100))
    fleet.coordinator.say(task)
    fleet.until(lambda: bool(fleet.coordinator.reports))
    assert fleet.coordinator.reports[0].reason == "unavailable"


def test_a_codec_nobody_knows_is_refused_by_name(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS, codec="zip/9"))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    assert fleet.coordinator.reports[0].state == "refused"
    assert "zip" in fleet.coordinator.reports[0].detail


def test_a_task_that_diverges_on_a_committed_bundle_is_reported_as_failed_and_the_next_is_done(fleet: Fleet) -> None:
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: len(fleet.coordinator.payloads) == 1 and not fleet.store.outbox())
    fleet.coordinator.say(replace(fleet.coordinator.task(2, ZEROS), learning_rate=3e38))
    fleet.until(lambda: bool([r for r in fleet.coordinator.reports if r.state == "failed"]))
    assert fleet.coordinator.reports[-1].reason == "diverged"
    fleet.coordinator.say(fleet.coordinator.task(3, ZEROS))
    fleet.until(lambda: len(fleet.coordinator.payloads) == 2)


def test_garbage_on_the_wire_is_counted_and_nothing_else(fleet: Fleet) -> None:
    topic = fleet.coordinator.topics.device(DEVICE, "down")
    for garbage in (b"", b"\xff" * 100, b"\xa0", b"not cbor at all"):
        fleet.coordinator.transport.publish(topic, garbage)
    fleet.coordinator.say(Chunk(b"c" * 32, 0, b"unasked"), "down/blob")
    fleet.coordinator.say(Receipt(b"r" * 32, "run/1", "accepted"))
    fleet.turn()
    assert fleet.agent.rejected == 4
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.payloads))


def test_bytes_are_counted_where_they_are_sent(fleet: Fleet) -> None:
    seen = 0
    listener = fleet.broker.connect("listener", (f"sf/1/test/{DEVICE}/up/#", f"sf/1/test/{DEVICE}/state"))
    fleet.restart()
    while listener.poll(0) is not None:
        pass
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.payloads) and not fleet.store.outbox())
    while (event := listener.poll(0)) is not None:
        if isinstance(event, Incoming):
            envelope = decode(event.payload)
            assert isinstance(envelope, Envelope)
            assert envelope.sent_before == seen
            seen += len(event.topic) + len(event.payload)
    assert seen == fleet.agent.sent_bytes


def test_a_lost_agent_is_announced_by_its_will(fleet: Fleet) -> None:
    fleet.turn()
    fleet.broker.cut(DEVICE)
    fleet.coordinator.work(0)
    assert fleet.coordinator.of(DeviceState)[-1] == DeviceState("lost")
