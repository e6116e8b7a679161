"""The store's folder: one owner, known versions, one bundle, and a limit it stays under."""

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.reports import Reports
from coordinator.rows import ModelVersion
from coordinator.schema import DATABASE
from coordinator.settings import LimitSettings
from coordinator.store import Store
from protocol.errors import ConfigurationError, NothingToDoError, SparsefleetError
from protocol.messages import BlobRef, TaskReport
from tests.coordinator.simulation import Simulation

LIMITS = LimitSettings(disk_mib=16, keep_rounds=2)


def test_two_coordinators_on_one_folder_are_refused(tmp_path: Path) -> None:
    first = Store(tmp_path, LIMITS)
    with pytest.raises(ConfigurationError, match="in use by another coordinator"):
        Store(tmp_path, LIMITS)
    first.close()
    Store(tmp_path, LIMITS).close()


def test_the_run_keeps_its_name_and_every_start_its_number(tmp_path: Path) -> None:
    first = Store(tmp_path, LIMITS)
    run, epoch = first.run, first.epoch
    first.close()
    second = Store(tmp_path, LIMITS)
    assert (second.run, second.epoch) == (run, epoch + 1)
    second.close()


def test_a_store_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    Store(tmp_path, LIMITS).close()
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    for opener in (lambda: Store(tmp_path, LIMITS), lambda: Reports(tmp_path)):
        with pytest.raises(ConfigurationError, match=r"coordinator.sqlite: schema version 99 .* newer version"):
            opener()


def test_a_file_that_is_no_database_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"not a database, and long enough to be read as one" * 50)
    with pytest.raises(SparsefleetError, match=r"coordinator.sqlite: is damaged .* Restore it"):
        Store(tmp_path, LIMITS)


def test_a_folder_of_another_bundle_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path, LIMITS)
    store.belongs_to(bytes(32), "one", "test")
    store.belongs_to(bytes(32), "one", "test")
    with pytest.raises(ConfigurationError, match="bundle: two is not the bundle"):
        store.belongs_to(bytes([1]) * 32, "two", "test")
    store.close()


def test_a_folder_nobody_ran_in_has_nothing_to_report(tmp_path: Path) -> None:
    with pytest.raises(NothingToDoError, match="no coordinator has run here"):
        Reports(tmp_path)


def test_reports_are_read_beside_the_running_coordinator_and_after_it(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path)
    fleet.finish()
    fleet.coordinator.stop()
    with Reports(tmp_path / "state") as reports:
        running = reports.status(fleet.settings.rounds)
        assert (running.running, running.rounds, running.version, running.present) == (True, 3, 3, 3)
        assert [row.round for row in reports.rounds()] == [0, 1, 2, 3]
        assert [row.accepted for row in reports.devices()] == [3, 3, 3]
        assert {row.phase for row in reports.round(2).devices} == {"done"}
        assert reports.model().path.read_bytes() == fleet.model()
        assert reports.model(1).version == 1
        with pytest.raises(NothingToDoError, match="version 9: not kept; there are versions 0 to 3"):
            reports.model(9)
        with pytest.raises(NothingToDoError, match="round 9"):
            reports.round(9)
    fleet.kill()
    with Reports(tmp_path / "state") as reports:
        assert (reports.status(fleet.settings.rounds).running, reports.status(fleet.settings.rounds).present) == (
            False,
            0,
        )


def test_the_status_says_in_words_what_the_run_waits_for(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=1, deadline_s=50.0)

    def waiting_for() -> str:
        for _ in range(10):
            fleet.turn()
        with Reports(tmp_path / "state") as reports:
            return reports.status(fleet.settings.rounds).waiting_for

    with Reports(tmp_path / "state") as reports:
        assert reports.status(fleet.settings.rounds).waiting_for == "devices, 0 of 3 are there"
    for agent in fleet.agents.values():
        agent.silent = True
    fleet.until(lambda: fleet.store.opened_round() is not None)
    assert waiting_for() == "updates of dev-0 (at work), dev-1 (at work), dev-2 (at work)"
    fleet.agents["dev-0"].send(TaskReport(f"{fleet.store.run}/1", "accepted", reason="ineligible", detail="hot"))
    assert waiting_for() == "updates of dev-0 (paused), dev-1 (at work), dev-2 (at work)"
    fleet.broker.cut("dev-1")
    assert "dev-1 (gone)" in waiting_for()
    fleet.broker.restore("dev-1")
    for agent in fleet.agents.values():
        agent.silent = False
        agent.restart()
    fleet.finish()
    assert waiting_for() == "nothing, the run is over"
    fleet.kill()


def test_updates_of_rounds_long_folded_are_pruned_and_their_figures_stay(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=5)
    fleet.kill()
    fleet.settings = replace(fleet.settings, limits=LIMITS)
    fleet.start()
    fleet.finish()
    kept = {u.digest.hex() for n in (4, 5) for u in fleet.store.accepted(n)}
    assert {p.name for p in fleet.store.updates.root.iterdir()} == kept
    assert len(fleet.store.accepted(1)) == 3
    # Five versions and the first, the server state of the newest, and those from which the kept rounds are refolded.
    assert len(list(fleet.store.models.root.iterdir())) == 9
    fleet.store.close()


def test_models_and_updates_stay_under_the_disk_limit_the_oldest_giving_way(tmp_path: Path) -> None:
    # 16 MiB hold 8 MiB of models: six versions of 1.2 MB.
    fleet = Simulation.make(tmp_path, count=9, parameters=300_000)
    fleet.kill()
    fleet.settings = replace(fleet.settings, limits=LimitSettings(disk_mib=16, keep_rounds=100))
    fleet.start()
    fleet.finish()
    for blobs in (fleet.store.models, fleet.store.updates):
        assert blobs.used_bytes() <= 8 << 20
    assert len(fleet.model()) == 4 * fleet.bundle.manifest.total
    with Reports(tmp_path / "state") as reports, pytest.raises(NothingToDoError, match="version 0: not kept"):
        reports.model(0)
    assert [c.devices for c in fleet.committed] == [3] * 9
    fleet.store.close()


def test_what_a_version_was_distilled_from_gives_way_with_it(tmp_path: Path) -> None:
    # Of 8 MiB, three versions of two models of 1 MiB each, and one of 3.5 MiB in place of the oldest.
    store = Store(tmp_path, LIMITS)

    def add(number: int) -> ModelVersion:
        blobs = [store.put_model(bytes([number, i]) * (1 << 19)) for i in range(2)]
        made = ModelVersion(number, blobs[0], bytes(32), None, {}, folded=blobs[1].digest)
        store.add_initial(made)
        return made

    first, second, third = (add(number) for number in range(3))
    store.put_model(bytes(7 << 19))
    for gone, kept in ((first, second), (first, third)):
        assert gone.folded is not None
        assert kept.folded is not None
        assert [store.models.has(digest) for digest in (gone.folded, gone.blob.digest)] == [False] * 2
        assert [store.models.has(digest) for digest in (kept.folded, kept.blob.digest)] == [True] * 2
    store.close()


def test_a_structure_gives_way_with_its_version_also_where_all_versions_have_one_model(tmp_path: Path) -> None:
    # As where a mask is learnt over frozen weights: of 8 MiB, a model of 1 MiB, six structures and room for one more.
    store, model = Store(tmp_path, LIMITS), bytes(1 << 20)

    def add(number: int) -> ModelVersion:
        structure = store.put_model(bytes([number + 1]) * (1 << 20)).digest
        made = ModelVersion(number, store.put_model(model), bytes(32), None, {}, structure=structure)
        store.add_initial(made)
        return made

    made = [add(number) for number in range(12)]
    assert store.models.used_bytes() <= 8 << 20
    kept = [store.models.has(version.structure or b"") for version in made]
    assert kept == [False] * 6 + [True] * 6
    assert store.models.has(made[0].blob.digest)
    store.close()


def test_an_update_that_does_not_fit_is_not_taken_and_not_rejected(tmp_path: Path) -> None:
    store = Store(tmp_path, LIMITS)
    assert store.room_for_update(BlobRef(bytes(32), 8 << 20))
    assert not store.room_for_update(BlobRef(bytes(32), (8 << 20) + 1))
    store.close()


def test_a_transaction_that_fails_at_its_commit_leaves_none_open(tmp_path: Path) -> None:
    store = Store(tmp_path, LimitSettings(disk_mib=16))
    sql = store._sql
    sql.execute("CREATE TABLE checked (x INTEGER REFERENCES meta (key) DEFERRABLE INITIALLY DEFERRED)")
    sql.execute("PRAGMA foreign_keys = ON")
    with pytest.raises(sqlite3.IntegrityError), store._transaction() as transaction:
        transaction.execute("INSERT INTO checked VALUES (1)")
    sql.execute("PRAGMA foreign_keys = OFF")
    with store._transaction() as transaction:
        transaction.execute("INSERT OR REPLACE INTO meta VALUES ('after', 1)")
    assert store._meta("after") == 1
    store.close()
