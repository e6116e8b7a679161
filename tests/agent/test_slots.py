"""The slots of a device: what is committed, tried and failed survives every restart, within its bounds."""

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.slots import MOST_FAILED, Asked, Slots
from edge_agent.store import AgentStore
from protocol import failpoints
from protocol.errors import DamagedError

A, B, C = (bytes([n]) * 32 for n in (1, 2, 3))
SOFTWARE = "agent 1, onnxruntime 1.20"


class Device:
    """A state folder and the slots in it, opened again and again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.open()

    def open(self, software: str = SOFTWARE) -> None:
        self.store = AgentStore(self.root, 1 << 20)
        self.slots = Slots(self.store.database, software, lambda: 1e9)

    def restart(self, software: str = SOFTWARE) -> None:
        self.store.close()
        self.open(software)
        self.slots.recover()

    @property
    def states(self) -> dict[bytes, str]:
        return {slot.digest: slot.state for slot in self.slots.all()}


@pytest.fixture
def device(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Device(tmp_path)
    yield made
    made.store.close()


def passed(slots: Slots, digest: bytes, version: int | None = None) -> None:
    assert slots.begin(digest, version)
    assert slots.commit(digest)


def test_a_bundle_that_passed_is_not_tried_again(device: Device) -> None:
    passed(device.slots, A)
    device.restart()
    assert not device.slots.begin(A)
    assert device.states == {A: "committed"}


def test_the_committed_bundle_the_one_before_and_the_one_on_trial_are_held_and_no_other(device: Device) -> None:
    for digest in (A, B, C):
        passed(device.slots, digest)
    device.slots.begin(b"4" * 32)
    device.slots.begin(b"5" * 32)
    device.restart()
    assert [slot.digest for slot in device.slots.committed()] == [C, B]
    assert device.slots.held() == {B, C, b"5" * 32}


def test_the_bundle_before_is_current_again_when_a_task_of_it_comes(device: Device) -> None:
    passed(device.slots, A)
    passed(device.slots, B)
    assert not device.slots.begin(A)
    device.restart()
    assert [slot.digest for slot in device.slots.committed()] == [A, B]


def test_two_deaths_in_a_trial_fail_it_and_one_does_not(device: Device) -> None:
    passed(device.slots, A, 4)
    device.slots.begin(B, 5)
    device.restart()
    assert device.slots.refusal(B) is None
    device.slots.begin(B, 5)
    device.restart()
    refusal = device.slots.refusal(B, 5)
    assert refusal is not None
    assert refusal.reason == "trial"
    assert f"bundle {B.hex()[:12]} (version 5) failed its trial here, died" in refusal.detail
    assert f"stays on {A.hex()[:12]} (version 4)" in refusal.detail


def test_trials_that_end_in_order_do_not_count(device: Device) -> None:
    for _ in range(5):
        device.slots.begin(A)
        device.slots.interrupt(A)
        device.restart()
    assert device.states == {A: "trial"}
    assert device.slots.find(A).begun == 0  # type: ignore[union-attr]


def test_a_failure_holds_for_the_agent_and_runtime_that_saw_it_until_somebody_says_retry(device: Device) -> None:
    device.slots.begin(A)
    device.slots.fail(A, "load", "unknown operator")
    device.restart()
    assert device.slots.refusal(A) is not None
    device.restart("agent 1, onnxruntime 1.21")
    assert device.slots.refusal(A) is None
    device.restart()
    assert device.slots.retry(A)
    assert not device.slots.retry(A)
    assert device.slots.refusal(A) is None


def test_what_an_operator_rolled_back_stays_so_whatever_is_installed(device: Device) -> None:
    passed(device.slots, A)
    passed(device.slots, B)
    device.slots.fail(B, "by hand", "smells")
    device.restart("agent 2")
    assert device.slots.refusal(B) is not None
    assert device.slots.committed()[0].digest == A


@pytest.mark.parametrize(
    ("asked", "refused"),
    [
        (Asked("sgd", 0.5), True),
        (Asked("sgd", 0.9), True),
        (Asked("sgd", 0.3), True),
        (None, True),
        (Asked("sgd", 0.25), False),
        (Asked("adamw", 0.5), False),
        (Asked("sgd", 0.5, b"another model"), False),
    ],
)
def test_steps_that_failed_are_taken_again_with_another_optimiser_or_model_or_half_the_rate(
    device: Device, asked: Asked | None, refused: bool
) -> None:
    device.slots.begin(A)
    device.slots.fail(A, "steps", "NaN", Asked("sgd", 0.5))
    device.restart()
    assert (device.slots.refusal(A, None, asked) is not None) == refused
    device.slots.fail(B, "load", "")
    device.slots.begin(C)
    device.slots.fail(C, "load", "", Asked("sgd", 0.5))
    assert device.slots.refusal(C, None, asked) is not None


def test_an_older_version_than_was_seen_is_refused_but_for_one_that_is_in_a_slot(device: Device) -> None:
    passed(device.slots, A, 4)
    passed(device.slots, B, 5)
    device.slots.saw(9)
    device.slots.saw(7)
    device.restart()
    assert device.slots.highest == 9
    assert device.slots.refusal(A, 4) is None
    assert device.slots.refusal(C, 9) is None
    refusal = device.slots.refusal(C, 8)
    assert refusal is not None
    assert refusal.reason == "rollback"
    assert "version 8, version 9 was seen" in refusal.detail
    device.slots.fail(B, "by hand", "")
    assert device.slots.refusal(B, 5).reason == "trial"  # type: ignore[union-attr]
    device.restart()
    device.slots.retry(B)
    assert device.slots.refusal(B, 5).reason == "rollback"  # type: ignore[union-attr]


def test_failed_bundles_are_forgotten_when_there_are_too_many(device: Device) -> None:
    passed(device.slots, A)
    digests = [bytes([n]) * 32 for n in range(10, 12 + MOST_FAILED)]
    for digest in digests:
        device.slots.begin(digest)
        device.slots.fail(digest, "load", "x" * 10_000)
    assert [slot.digest for slot in device.slots.all() if slot.state == "failed"] == digests[2:]
    assert max(len(slot.detail) for slot in device.slots.all()) == 500
    assert device.slots.held() == {A}


def test_there_is_no_bundle_to_let_go_of_but_the_one_held_for_rollback(device: Device) -> None:
    passed(device.slots, A)
    assert not device.slots.give_up_earlier(B)
    passed(device.slots, B)
    assert not device.slots.give_up_earlier(A)
    assert device.slots.give_up_earlier(C)
    assert device.states == {B: "committed"}


@pytest.mark.parametrize(
    ("step", "wanted"),
    [
        ("agent.trial-begun", {A: "committed", B: "trial"}),
        ("agent.trial-committing", {A: "committed", B: "trial"}),
        ("agent.trial-committed", {A: "committed", B: "committed"}),
    ],
)
def test_a_process_killed_at_a_step_of_a_trial_leaves_what_was_before_it_or_after(
    device: Device, step: failpoints.Failpoint, wanted: dict[bytes, str]
) -> None:
    passed(device.slots, A)

    class Dead(BaseException):
        pass

    def die(at: failpoints.Failpoint) -> None:
        if at == step:
            raise Dead

    failpoints.install(die)
    try:
        with pytest.raises(Dead):
            passed(device.slots, B)
    finally:
        failpoints.install(None)
    device.restart()
    assert device.states == wanted


Hurt = Callable[[sqlite3.Connection], object]


def flip(database: sqlite3.Connection) -> None:
    (record,) = database.execute("SELECT record FROM slot WHERE digest = ?", (A,)).fetchone()
    database.execute("UPDATE slot SET record = ? WHERE digest = ?", (record[:9] + b"\xff" + record[10:], A))


@pytest.mark.parametrize(
    "hurt",
    [flip, lambda sql: sql.execute("UPDATE slot SET digest = ?", (C,)), lambda sql: sql.execute("DELETE FROM slot")],
    ids=["a flipped byte", "another's name", "gone"],
)
def test_a_slot_that_was_altered_on_the_disk_is_tried_anew(device: Device, hurt: Hurt) -> None:
    passed(device.slots, A)
    with device.store.database:
        hurt(device.store.database)
    device.restart()
    assert not device.slots.is_committed(A)
    assert not device.slots.is_committed(C)
    assert device.slots.begin(A)


def test_a_table_that_is_another_is_refused_by_name(device: Device) -> None:
    device.store.database.executescript("ALTER TABLE slot RENAME COLUMN record TO recard")
    with pytest.raises(DamagedError, match=r"agent\.sqlite"):
        device.restart()
