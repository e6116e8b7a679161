"""The agent's store: what survives a restart, and that residuals move only with an accepted receipt."""

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from edge_agent.store import AgentStore
from protocol.disk import Isolation, disk_named
from protocol.errors import ConfigurationError, SparsefleetError
from protocol.messages import BlobRef, Offer
from tests.agent.test_job import task

LAYOUT = b"layout08"


def offer(store: AgentStore, payload: bytes = b"payload", round_: int = 1) -> Offer:
    return Offer(
        blob=store.blobs.put(payload),
        run="run",
        round=round_,
        update_boot=store.boot,
        update_sequence=store.next_sequence(),
        base=b"b" * 32,
        examples=10,
        steps=3,
        loss=0.5,
        train_s=0.1,
        codec="all/float32",
    )


def reopen(store: AgentStore) -> AgentStore:
    root = store.blobs.root.parent
    store.close()
    return AgentStore(root, 1 << 20)


def test_each_start_has_a_new_boot_number(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    first = store.boot
    store = reopen(store)
    assert store.boot == first + 1
    store.close()


def test_task_outbox_and_residual_survive_a_restart(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    store.remember_task(task(2))
    kept = offer(store)
    store.keep_update(kept, LAYOUT, np.array([1.0, 2.0], np.float32))
    store.remember_task(task(3))
    store = reopen(store)
    assert store.task() == task(3)
    assert store.outbox() == (kept,)
    assert store.blobs.read(kept.blob.digest) == b"payload"
    store.close()


def test_an_accepted_receipt_puts_the_new_residual_in_force_and_removes_the_payload(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    kept = offer(store)
    store.keep_update(kept, LAYOUT, np.array([1.0, 2.0], np.float32))
    assert store.residual(LAYOUT, 2).tolist() == [0.0, 0.0]
    settled = store.settle(kept.blob.digest, kept.task, accepted=True, reason="")
    assert settled is not None
    assert settled.accepted
    assert store.residual(LAYOUT, 2).tolist() == [1.0, 2.0]
    assert store.outbox() == ()
    assert not store.blobs.has(kept.blob.digest)
    store.close()


def test_a_rejected_receipt_leaves_the_residual_alone(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    first, second = offer(store, b"1", 1), offer(store, b"2", 2)
    store.keep_update(first, LAYOUT, np.array([1.0], np.float32))
    store.settle(first.blob.digest, first.task, accepted=True, reason="")
    store.keep_update(second, LAYOUT, np.array([9.0], np.float32))
    store.settle(second.blob.digest, second.task, accepted=False, reason="round-closed")
    assert store.residual(LAYOUT, 1).tolist() == [1.0]
    store.close()


def test_a_receipt_that_comes_twice_or_names_nothing_changes_nothing(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    kept = offer(store)
    store.keep_update(kept, LAYOUT, np.array([1.0], np.float32))
    assert store.settle(b"x" * 32, kept.task, accepted=True, reason="") is None
    assert store.settle(kept.blob.digest, "run/99", accepted=True, reason="") is None
    assert store.outbox() == (kept,)
    assert store.settle(kept.blob.digest, kept.task, accepted=True, reason="") is not None
    assert store.settle(kept.blob.digest, kept.task, accepted=True, reason="") is None
    store.close()


def test_a_task_never_has_two_updates(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    store.keep_update(offer(store, b"1"), LAYOUT, np.zeros(1, np.float32))
    with pytest.raises(sqlite3.IntegrityError):
        store.keep_update(offer(store, b"2"), LAYOUT, np.zeros(1, np.float32))
    assert len(store.outbox()) == 1
    store.close()


def test_a_kill_inside_the_keeping_transaction_keeps_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    store.remember_task(task(1))
    store.database.execute("CREATE TRIGGER fault BEFORE DELETE ON task BEGIN SELECT RAISE(ABORT, 'power cut'); END")
    with pytest.raises(sqlite3.IntegrityError):
        store.keep_update(offer(store), LAYOUT, np.zeros(1, np.float32))
    store.database.execute("DROP TRIGGER fault")
    store.database.commit()
    store = reopen(store)
    assert store.task() == task(1)
    assert store.outbox() == ()
    store.close()


def test_a_second_agent_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    with pytest.raises(ConfigurationError, match="another edge-agent"):
        AgentStore(tmp_path, 1 << 20)
    store.close()


def test_a_damaged_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "agent.sqlite"
    path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(ConfigurationError, match="nothing was changed"):
        AgentStore(tmp_path, 1 << 20)
    assert path.read_bytes().startswith(b"this is not a database")


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    with store.database:
        store.database.execute("UPDATE meta SET value = 99 WHERE key = 'schema'")
    store.close()
    with pytest.raises(ConfigurationError, match="newer edge-agent"):
        AgentStore(tmp_path, 1 << 20)


def test_a_residual_of_another_layout_or_length_is_not_used(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    kept = offer(store)
    store.keep_update(kept, LAYOUT, np.array([1.0, 2.0], np.float32))
    store.settle(kept.blob.digest, kept.task, accepted=True, reason="")
    assert store.residual(b"another!", 2).tolist() == [0.0, 0.0]
    assert store.residual(LAYOUT, 3).tolist() == [0.0, 0.0, 0.0]
    store.close()


def test_what_another_layout_left_unsent_goes_with_the_first_accepted_update_and_not_before(tmp_path: Path) -> None:
    store = AgentStore(tmp_path, 1 << 20)
    verdicts = [(LAYOUT, True, [1.0, 2.0]), (b"another!", False, [1.0, 2.0]), (b"another!", True, [0.0, 0.0])]
    for round_, (layout, accepted, left) in enumerate(verdicts, 1):
        kept = offer(store, bytes([round_]), round_)
        store.keep_update(kept, layout, np.array([1.0, 2.0], np.float32))
        store.settle(kept.blob.digest, kept.task, accepted=accepted, reason="")
        assert store.residual(LAYOUT, 2).tolist() == left
    assert store.residual(b"another!", 2).tolist() == [1.0, 2.0]
    store.close()


def test_a_blob_reference_over_the_limits_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="digest"):
        BlobRef(b"short", 1)


def test_a_device_whose_disk_was_replaced_never_gives_an_update_an_earlier_ones_name(tmp_path: Path) -> None:
    names = set()
    for disk in ("first", "second", "third"):
        store = AgentStore(tmp_path / disk, 1 << 20)
        names |= {(store.boot, store.next_sequence()) for _ in range(100)}
        store.close()
    assert len(names) == 300
    assert all(0 < sequence < 1 << 62 for _, sequence in names)


def test_a_state_folder_put_back_from_a_backup_never_gives_an_update_an_earlier_ones_name(tmp_path: Path) -> None:
    store = AgentStore(tmp_path / "state", 1 << 20)
    store.close()
    shutil.copytree(tmp_path / "state", tmp_path / "backup")
    names = []
    for _ in range(3):
        store = AgentStore(tmp_path / "state", 1 << 20)
        names += [(store.boot, store.next_sequence()) for _ in range(100)]
        store.close()
        shutil.rmtree(tmp_path / "state")
        shutil.copytree(tmp_path / "backup", tmp_path / "state")
    assert {boot for boot, _ in names} == {2}, "the counter of boots went back"
    assert len(set(names)) == 300


def test_a_backup_with_an_update_in_it_still_offers_that_one_under_its_name(tmp_path: Path) -> None:
    store = AgentStore(tmp_path / "state", 1 << 20)
    kept = offer(store)
    store.keep_update(kept, LAYOUT, np.zeros(1, np.float32))
    store.close()
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    for folder in ("state", "copy"):
        store = AgentStore(tmp_path / folder, 1 << 20)
        assert store.outbox() == (kept,)
        store.close()


def test_every_start_draws_an_instance_of_its_own(tmp_path: Path) -> None:
    instances = set()
    for _ in range(5):
        store = AgentStore(tmp_path, 1 << 20)
        instances.add(store.instance)
        store.close()
    assert len(instances) == 5


def test_a_full_disk_is_said_to_be_full_and_no_damaged_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_room(path: Path, isolation_level: Isolation) -> sqlite3.Connection:
        database = connect(path, isolation_level=isolation_level)
        database.execute("PRAGMA max_page_count = 1")
        return database

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", without_room)
    with pytest.raises(SparsefleetError, match=f"{tmp_path}: database or disk is full; free disk space"):
        opened(tmp_path)


def opened(folder: Path) -> AgentStore:
    with disk_named(folder):
        return AgentStore(folder, 1 << 20)
