"""An agent whose disk holds what it never wrote: nothing is overwritten or acted on, and the remedy is said."""

import errno
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from edge_agent import daemon
from edge_agent.store import FILE, SCHEMA, AgentStore
from protocol.database import damage_named, sealed, unsealed
from protocol.disk import LocalDisk, disk_named
from protocol.errors import ConfigurationError, DamagedError, SparsefleetError
from protocol.messages import Offer, Task
from protocol.transport import Event
from tests.agent.test_job import task
from tests.agent.test_store import LAYOUT, offer

RESIDUAL = np.arange(1, 101, dtype=np.float32)
Kept = tuple[Task | None, tuple[Offer, ...], bytes]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Kept]:
    """A state folder with a residual, an update in the outbox and a task in hand, and what they are."""
    root = tmp_path_factory.mktemp("whole")
    store = AgentStore(root, 1 << 20)
    first = offer(store, b"1", 1)
    store.keep_update(first, LAYOUT, RESIDUAL)
    store.settle(first.blob.digest, first.task, accepted=True, reason="")
    store.keep_update(offer(store, b"2", 2), LAYOUT, RESIDUAL + 1)
    store.remember_task(task(3))
    kept = found(store)
    store.close()
    assert not (root / f"{FILE}-wal").exists()
    return root, kept


def found(store: AgentStore) -> Kept:
    return store.task(), store.outbox(), store.residual(LAYOUT, len(RESIDUAL)).tobytes()


@pytest.fixture
def state(whole: tuple[Path, Kept], tmp_path: Path) -> Path:
    shutil.copytree(whole[0], tmp_path / "state")
    return tmp_path / "state"


def refused(state: Path) -> str:
    """Opens what must be refused, and sees to it that not a byte of it changes."""
    before = files(state)
    with pytest.raises(ConfigurationError) as error:
        AgentStore(state, 1 << 20)
    assert files(state) == before
    return str(error.value)


def files(state: Path) -> dict[str, bytes]:
    """All but what SQLite makes to read beside others, which says nothing."""
    made = [path for path in state.iterdir() if path.is_file() and not path.name.endswith("-shm")]
    return {path.name: data for path in made if (data := path.read_bytes()) or not path.name.endswith("-wal")}


def test_any_flipped_bit_is_noticed_or_changes_nothing_that_is_acted_on(
    whole: tuple[Path, Kept], tmp_path: Path
) -> None:
    root, kept = whole
    good, pick, outcomes = (root / FILE).read_bytes(), random.Random(5), {"refused": 0, "noticed": 0, "harmless": 0}
    state = tmp_path / "state"
    shutil.copytree(root, state)
    places = [at for at, byte in enumerate(good) if byte]
    for _ in range(200):
        at = pick.choice(places)
        hurt = good[:at] + bytes([good[at] ^ 1 << pick.randrange(8)]) + good[at + 1 :]
        (state / FILE).write_bytes(hurt)
        for end in ("-wal", "-shm"):
            (state / f"{FILE}{end}").unlink(missing_ok=True)
        outcome, now = opened(state)
        outcomes[outcome] += 1
        if outcome == "refused":
            assert (state / FILE).read_bytes() == hurt
        if now is not None:
            # What a flipped bit takes out of sight is no longer there; it is never there and something else.
            assert now[0] in (kept[0], None)
            assert now[1] in (kept[1], ())
            assert now[2] in (kept[2], bytes(len(kept[2])))
    assert min(outcomes.values()) > 0, outcomes


def opened(state: Path) -> tuple[str, Kept | None]:
    try:
        store = AgentStore(state, 1 << 20)
    except ConfigurationError:
        return "refused", None
    try:
        with damage_named(state / FILE, ""):
            return "harmless", found(store)
    except DamagedError:
        return "noticed", None
    finally:
        store.close()


def test_a_page_that_is_nonsense_is_refused_and_left_as_it_is(state: Path) -> None:
    data = bytearray((state / FILE).read_bytes())
    with sqlite3.connect(state / FILE) as sql:
        (page,) = sql.execute("SELECT rootpage FROM sqlite_master WHERE name = 'outbox'").fetchone()
    sql.close()
    data[(page - 1) * 4096 : page * 4096] = bytes(range(256)) * 16
    (state / FILE).write_bytes(data)
    assert "agent.sqlite: is damaged" in refused(state)


def test_half_a_file_is_refused_and_left_as_it_is(state: Path) -> None:
    data = (state / FILE).read_bytes()
    (state / FILE).write_bytes(data[: len(data) // 2])
    said = refused(state)
    assert "is damaged" in said
    assert "an update that was not yet received is lost with it" in said


def test_a_file_that_is_empty_beside_blobs_is_refused(state: Path) -> None:
    (state / FILE).write_bytes(b"")
    assert "it is empty, and blobs/ holds what it named" in refused(state)


def test_a_file_of_a_newer_version_is_left_as_it_is_with_what_a_kill_left_beside_it(state: Path) -> None:
    """The -wal file of a killed process must not be carried over by one that does not know the schema."""
    sql = sqlite3.connect(state / FILE)
    with sql:
        sql.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (SCHEMA + 1,))
    killed = state.parent / "killed"
    shutil.copytree(state, killed)
    sql.close()
    assert (killed / f"{FILE}-wal").stat().st_size > 0
    (killed / f"{FILE}-shm").unlink()
    assert f"schema {SCHEMA + 1}, this one knows {SCHEMA}" in refused(killed)


def test_a_log_that_was_cut_gives_back_the_last_whole_transaction(state: Path) -> None:
    store = AgentStore(state, 1 << 20)
    before = found(store)
    store.remember_task(task(9))
    killed = state.parent / "killed"
    shutil.copytree(state, killed)
    store.close()
    log = killed / f"{FILE}-wal"
    log.write_bytes(log.read_bytes()[:-100])
    store = AgentStore(killed, 1 << 20)
    assert found(store) == before
    store.close()


def altered_residual(sql: sqlite3.Connection) -> None:
    (vector,) = sql.execute("SELECT vector FROM residual").fetchone()
    sql.execute("UPDATE residual SET vector = ?", (vector[:2] + b"\xff\x7f" + vector[4:],))


def test_a_residual_that_was_altered_is_let_go_and_said(state: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = AgentStore(state, 1 << 20)
    with store.database:
        altered_residual(store.database)
    assert not store.residual(LAYOUT, len(RESIDUAL)).any()
    assert "residual let go: it was altered on this disk" in caplog.text
    store.close()


def test_rows_of_an_older_agent_have_no_seal_and_are_read_as_they_are(state: Path, whole: tuple[Path, Kept]) -> None:
    import cbor2

    store = AgentStore(state, 1 << 20)
    with store.database as sql:
        for table, column in (("task", "message"), ("outbox", "offer")):
            fields = cbor2.loads(sql.execute(f"SELECT {column} FROM {table}").fetchone()[0])
            del fields["seal"]
            sql.execute(f"UPDATE {table} SET {column} = ?", (cbor2.dumps(fields),))
        sql.execute("UPDATE residual SET vector = ?", (RESIDUAL.astype("<f4").tobytes(),))
    assert found(store) == whole[1]
    store.close()


def test_what_is_sealed_is_had_back_and_nothing_else() -> None:
    data = sealed(b"payload")
    assert unsealed(data) == b"payload"
    assert sealed(b"") != b""
    assert unsealed(sealed(b"")) == b""
    for at in range(len(data)):
        for bit in range(8):
            assert unsealed(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]) is None
    for end in range(len(data)):
        assert unsealed(data[:end]) is None


class Quiet:
    """A transport on which nothing happens."""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        return False

    def poll(self, timeout_s: float) -> Event | None:
        return None

    def close(self) -> None:
        pass


class Hurt:
    """An agent that meets damage in the middle of its work."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act, self.gave_back = act, 0

    def advance(self, now: float) -> float:
        self.act()
        return 0.0

    def fail(self, reason: str, detail: str) -> None:
        self.gave_back += 1


class Never:
    number, waiting = None, False

    def received(self) -> bool:
        return False


@pytest.fixture
def corrupt() -> Iterator[Callable[[], None]]:
    sql = sqlite3.connect(":memory:")

    def act() -> None:
        sql.execute("CREATE TABLE t (a)")
        sql.execute("PRAGMA writable_schema = ON")
        sql.execute("UPDATE sqlite_master SET rootpage = 9999")
        sql.execute("PRAGMA writable_schema = RESET")
        sql.execute("SELECT * FROM t").fetchall()

    yield act
    sql.close()


def test_damage_met_at_work_ends_the_daemon_with_a_sentence(tmp_path: Path, corrupt: Callable[[], None]) -> None:
    agent = Hurt(corrupt)
    said = pytest.raises(DamagedError, match=r"agent.sqlite: is damaged .* Restore it")
    with said, damage_named(tmp_path / FILE, "x"):
        daemon._loop(agent, Quiet(), Never())  # type: ignore[arg-type]
    assert agent.gave_back == 0


class Refusing(LocalDisk):
    """A disk on which nothing may be made: read-only, or another user's."""

    def __init__(self, number: int) -> None:
        self.number = number

    def make_folder(self, path: Path) -> None:
        raise OSError(self.number, os.strerror(self.number))

    def lock(self, path: Path) -> Callable[[], None] | None:
        raise OSError(self.number, os.strerror(self.number))


class Folder(Refusing):
    """One where only the folder itself is there already."""

    def make_folder(self, path: Path) -> None:
        pass


@pytest.mark.parametrize("kind", [Refusing, Folder])
@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_may_not_be_written_is_named_with_a_remedy(
    state: Path, kind: type[Refusing], number: int
) -> None:
    before = files(state)
    said = pytest.raises(SparsefleetError, match=f"{state}: .*{os.strerror(number)}.*; (set `state`|free disk space)")
    with said, disk_named(state):
        AgentStore(state, 1 << 20, kind(number))
    assert files(state) == before


def test_a_folder_in_place_of_the_database_is_named_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(SparsefleetError, match="unable to open database file; free disk space"), disk_named(tmp_path):
        AgentStore(tmp_path, 1 << 20)
