"""A coordinator whose disk holds what it never wrote: nothing is overwritten, the daemon ends with a sentence."""

import errno
import os
import random
import resource
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from coordinator import process
from coordinator.reports import Reports
from coordinator.schema import DATABASE, VERSION
from coordinator.settings import LimitSettings, RoundSettings
from coordinator.store import Store
from protocol.disk import disk_named
from protocol.errors import DamagedError, SparsefleetError
from protocol.transport import Event
from tests.agent.test_damage import Refusing
from tests.coordinator.simulation import Simulation
from tests.coordinator.test_process import BROKER, Polled, signals

__all__ = ["signals"]

LIMITS = LimitSettings(disk_mib=64)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of a run that is over."""
    fleet = Simulation.make(tmp_path_factory.mktemp("run"))
    fleet.finish()
    fleet.store.close()
    return fleet.folder / "state"


@pytest.fixture
def state(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Simulation]:
    made = Simulation.make(tmp_path)
    yield made
    made.store.close()


def files(state: Path) -> dict[str, bytes]:
    """All but what SQLite makes to read beside others, which says nothing."""
    made = [path for path in state.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    found = {str(path.relative_to(state)): path.read_bytes() for path in made}
    return {name: data for name, data in found.items() if data or not name.endswith("-wal")}


def refused(state: Path) -> str:
    """Opens what must be refused, and sees to it that not a byte of the folder changes."""
    before = files(state)
    with pytest.raises(SparsefleetError) as error:
        Store(state, LIMITS)
    assert files(state) == before
    return str(error.value)


def test_any_page_that_is_nonsense_is_refused_or_not_in_use(state: Path) -> None:
    good, refusals = (state / DATABASE).read_bytes(), 0
    for page in range(0, len(good), 4096):
        (state / DATABASE).write_bytes(good[:page] + bytes(range(256)) * 16 + good[page + 4096 :])
        for end in ("-wal", "-shm"):
            (state / f"{DATABASE}{end}").unlink(missing_ok=True)
        before = files(state)
        try:
            Store(state, LIMITS).close()
        except DamagedError as error:
            assert_said(error)
            assert files(state) == before
            refusals += 1
    assert refusals > len(good) // 4096 // 2


def assert_said(error: DamagedError) -> None:
    assert error.exit_code == 3
    assert f"{DATABASE}: is damaged" in str(error)
    assert "nothing was changed. Restore it from a backup" in str(error)


def test_flipped_bits_end_in_a_sentence_wherever_they_are(state: Path) -> None:
    good, pick = (state / DATABASE).read_bytes(), random.Random(7)
    places = [at for at, byte in enumerate(good) if byte]
    ends = {"refused": 0, "opened": 0}
    for _ in range(60):
        at = pick.choice(places)
        (state / DATABASE).write_bytes(good[:at] + bytes([good[at] ^ 1 << pick.randrange(8)]) + good[at + 1 :])
        for end in ("-wal", "-shm"):
            (state / f"{DATABASE}{end}").unlink(missing_ok=True)
        try:
            Store(state, LIMITS).close()
            ends["opened"] += 1
        except SparsefleetError:
            ends["refused"] += 1
    assert min(ends.values()) > 0, ends


def test_half_a_database_is_refused_and_left_as_it_is(state: Path) -> None:
    data = (state / DATABASE).read_bytes()
    (state / DATABASE).write_bytes(data[: len(data) // 2 // 4096 * 4096])
    assert "a new run begins, without the models and updates of this one" in refused(state)


@pytest.mark.parametrize("content", [None, b""], ids=["gone", "empty"])
def test_models_without_a_database_are_not_taken_for_an_empty_folder(state: Path, content: bytes | None) -> None:
    (state / DATABASE).unlink()
    if content is not None:
        (state / DATABASE).write_bytes(content)
    assert "it is empty or gone, and models/ holds what it named" in refused(state)


def test_a_newer_database_is_left_as_it_is_with_what_a_kill_left_beside_it(state: Path) -> None:
    sql = sqlite3.connect(state / DATABASE, isolation_level=None)
    sql.execute(f"PRAGMA user_version = {VERSION + 1}")
    killed = state.parent / "killed"
    shutil.copytree(state, killed)
    sql.close()
    assert (killed / f"{DATABASE}-wal").stat().st_size > 0
    (killed / f"{DATABASE}-shm").unlink()
    assert "written by a newer version of sparsefleet" in refused(killed)


def test_a_log_that_was_cut_gives_back_the_last_whole_transaction(fleet: Simulation) -> None:
    fleet.until(lambda: len(fleet.committed) == 1)
    kept = fleet.model()
    shutil.copytree(fleet.folder / "state", fleet.folder / "killed")
    log = fleet.folder / "killed" / f"{DATABASE}-wal"
    log.write_bytes(log.read_bytes()[:-100])
    store = Store(fleet.folder / "killed", LIMITS)
    current = store.current()
    assert current is not None
    assert store.models.read(current.blob.digest)
    assert kept
    store.close()


def test_a_task_that_cannot_be_read_is_said_to_be_damaged(fleet: Simulation) -> None:
    fleet.until(lambda: fleet.store.opened_round() is not None)
    with fleet.store._transaction() as sql:
        sql.execute("UPDATE tasks SET task = x'ff' WHERE device = 'dev-1'")
    with pytest.raises(DamagedError, match="a stored task cannot be read"):
        fleet.store.opened_round()


def test_damage_met_at_work_ends_the_daemon_at_once(
    fleet: Simulation, signals: process.Signals, caplog: pytest.LogCaptureFixture
) -> None:
    def met(*_: Any) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    fleet.store.accept = met  # type: ignore[method-assign,assignment]
    with pytest.raises(sqlite3.DatabaseError, match="malformed"):
        process._loop(fleet.coordinator, Polled(fleet), BROKER, signals, exit_when_finished=True)
    assert not [r for r in caplog.records if r.exc_info]


def test_what_is_asked_of_a_damaged_database_is_answered_with_a_sentence(state: Path) -> None:
    data = bytearray((state / DATABASE).read_bytes())
    sql = sqlite3.connect(state / DATABASE)
    (page,) = sql.execute("SELECT rootpage FROM sqlite_master WHERE name = 'devices'").fetchone()
    sql.close()
    data[(page - 1) * 4096 : page * 4096] = bytes(range(256)) * 16
    (state / DATABASE).write_bytes(data)
    with pytest.raises(DamagedError, match="is damaged"), Reports(state) as reports:
        reports.status(RoundSettings(count=3, devices=3, deadline_s=60.0))


@contextmanager
def full_disk() -> Iterator[None]:
    """The system refuses every write of this process to any file, as it does where there is no room."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Filling(Polled):
    """A transport whose coordinator finds the disk full from its `begin`-th turn on, for a while."""

    def __init__(self, fleet: Simulation, begin: int) -> None:
        super().__init__(fleet)
        self.turns, self.begin, self.full = 0, begin, ExitStack()

    def poll(self, timeout_s: float) -> Event | None:
        self.pass_turn()
        return super().poll(timeout_s)

    def pass_turn(self, _: float = 0.0) -> None:
        """Also by the pause after a fault, where the coordinator does not come to polling."""
        self.turns += 1
        if self.turns == self.begin:
            self.full.enter_context(full_disk())
        elif self.turns == self.begin + 12:
            self.full.close()


@pytest.mark.parametrize("begin", range(1, 60, 9))
def test_a_run_whose_disk_is_full_for_a_while_ends_with_the_model_of_one_that_was_not(
    tmp_path: Path, signals: process.Signals, begin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = []
    for name in ("undisturbed", "full"):
        fleet = Simulation.make(tmp_path / name)
        fleet.store.run = "run"
        filling = Filling(fleet, begin if name == "full" else -100)
        monkeypatch.setattr(time, "sleep", filling.pass_turn)
        with filling.full:
            process._loop(fleet.coordinator, filling, BROKER, signals, exit_when_finished=True)
        models.append(fleet.model())
        assert [c.devices for c in fleet.committed] == [3, 3, 3]
        fleet.store.close()
    assert models[0] == models[1]


def test_a_coordinator_that_cannot_begin_on_a_full_disk_says_so_and_leaves_the_folder_usable(tmp_path: Path) -> None:
    with full_disk(), pytest.raises(SparsefleetError, match="free disk space"), disk_named(tmp_path):
        Store(tmp_path / "state", LIMITS)
    Store(tmp_path / "state", LIMITS).close()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_is_named_with_a_remedy(state: Path, number: int) -> None:
    before = files(state)
    with pytest.raises(
        SparsefleetError, match=rf"state: {state} cannot be used \({os.strerror(number)}\); name another"
    ):
        Store(state, LIMITS, Refusing(number))
    assert files(state) == before
