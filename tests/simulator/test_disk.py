"""The disk seam: the system's disk and the simulated one do the same, until the power is cut."""

import errno
import sqlite3
from pathlib import Path
from random import Random

import pytest

from protocol.disk import LOCAL, Disk, is_disk_trouble, write_durably
from tests.simulator.disk import Platter, SimulatedDisk
from tests.simulator.life import Killed, Life, Steps


def simulated(seed: int = 0, kills: tuple[int, ...] = ()) -> SimulatedDisk:
    life = Life(Steps(lambda what: None, list(kills)))
    return SimulatedDisk(Platter(Random(seed)), life)


def again(disk: SimulatedDisk, *, power: bool) -> SimulatedDisk:
    """The disk as the next process finds it."""
    disk.life.end()
    disk.close_databases()
    if power:
        disk.platter.cut_power()
    return SimulatedDisk(disk.platter, Life(Steps(lambda what: None)))


@pytest.fixture(params=["local", "simulated"])
def disk(request: pytest.FixtureRequest) -> Disk:
    return LOCAL if request.param == "local" else simulated()


def test_files_are_written_read_renamed_and_removed(disk: Disk, tmp_path: Path) -> None:
    folder = tmp_path / "state" / "blobs"
    disk.make_folder(folder)
    disk.make_folder(folder)
    file, other = folder / "file", folder / "other"
    disk.write(file, b"first")
    disk.write(file, b"a")
    assert (disk.read(file), disk.size(file)) == (b"a", 1)
    disk.write_at(file, b"xy", 4, 8)
    assert disk.read(file) == b"a\0\0\0xy\0\0"
    assert (disk.read(file, 4, 2), disk.read(file, 5), disk.read(file, 9, 1)) == (b"xy", b"y\0\0", b"")
    disk.write_at(file, b"z", 0, 2)
    disk.sync(file, folder)
    disk.write(other, b"other")
    disk.rename(file, other)
    assert (disk.names(folder), disk.read(other)) == (("other",), b"z\0")
    assert disk.names(tmp_path / "state") == ("blobs",)
    disk.remove(other)
    disk.remove(other)
    assert disk.names(folder) == ()
    disk.remove_folder(tmp_path / "state")
    assert disk.names(tmp_path / "state") == disk.names(folder) == ()


def test_what_is_not_there_is_not_found(disk: Disk, tmp_path: Path) -> None:
    disk.make_folder(tmp_path)
    for look in (disk.size, disk.read, disk.sync):
        with pytest.raises(FileNotFoundError):
            look(tmp_path / "nothing")
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileNotFoundError):
            disk.size(path)
    with pytest.raises(FileNotFoundError):
        disk.write(tmp_path / "no-folder" / "file", b"data")
    with pytest.raises(FileNotFoundError):
        disk.rename(tmp_path / "nothing", tmp_path / "other")


def test_a_file_is_locked_by_one_at_a_time(disk: Disk, tmp_path: Path) -> None:
    disk.make_folder(tmp_path)
    unlock = disk.lock(tmp_path / "lock")
    assert unlock is not None
    assert disk.lock(tmp_path / "lock") is None
    unlock()
    assert disk.lock(tmp_path / "lock") is not None


def test_a_database_keeps_rows_refuses_wrong_ones_and_rolls_back(disk: Disk, tmp_path: Path) -> None:
    disk.make_folder(tmp_path)
    database = disk.database(tmp_path / "rows.sqlite", "DEFERRED")
    assert database.execute("PRAGMA journal_mode = WAL").fetchone()[0] == "wal"
    database.executescript("BEGIN; CREATE TABLE rows (one INTEGER PRIMARY KEY, data BLOB); COMMIT;")
    with database:
        database.execute("INSERT INTO rows VALUES (?, ?)", (1, b"data"))
    database.execute("INSERT INTO rows VALUES (2, x'')")
    assert database.in_transaction
    with pytest.raises(sqlite3.IntegrityError), database:
        database.execute("INSERT INTO rows VALUES (1, x'')")
    assert list(database.execute("SELECT one FROM rows")) == [(1,)]
    assert list(database.execute("SELECT * FROM rows")) == [(1, b"data")]
    assert database.execute("SELECT one FROM rows WHERE one > 1").fetchone() is None
    database.close()
    database = disk.database(tmp_path / "rows.sqlite", None)
    assert database.execute("SELECT count(*) FROM rows").fetchall() == [(1,)]
    database.close()


@pytest.mark.parametrize("seed", range(50))
def test_a_power_cut_takes_only_what_was_not_synced(seed: int) -> None:
    disk = simulated(seed)
    root = Path("/state")
    disk.make_folder(root)
    write_durably(root / "kept", b"kept" * 1000, disk)
    disk.write_at(root / "kept", b"lost", 0, 4000)
    disk.write(root / "new", b"new")
    later = again(disk, power=True)
    assert later.read(root / "kept")[4:] == (b"kept" * 1000)[4:]
    assert not set(later.names(root)) - {"kept", "new"}


def test_power_cuts_differ_in_what_they_take_and_process_kills_take_nothing() -> None:
    found: dict[bool, set[tuple[tuple[str, int], ...]]] = {True: set(), False: set()}
    for power, kept in found.items():
        for seed in range(30):
            disk = simulated(seed)
            disk.make_folder(Path("/state"))
            for name in ("a", "b"):
                disk.write(Path("/state") / name, b"x" * 2000)
            later, root = again(disk, power=power), Path("/state")
            kept.add(tuple((name, later.size(root / name)) for name in later.names(root)))
    assert found[False] == {(("a", 2000), ("b", 2000))}
    assert len(found[True]) > 3


@pytest.mark.parametrize("power", [False, True])
def test_committed_rows_survive_a_kill_at_any_step(power: bool) -> None:
    path = Path("/state/rows.sqlite")

    def work(disk: SimulatedDisk, committed: list[int]) -> None:
        disk.make_folder(path.parent)
        database = disk.database(path, None)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE IF NOT EXISTS rows (one INTEGER PRIMARY KEY, data BLOB)")
        for one in range(6):
            database.execute("BEGIN IMMEDIATE")
            database.execute("INSERT INTO rows VALUES (?, ?)", (one, bytes(3000)))
            database.execute("COMMIT")
            committed.append(one)

    whole = simulated()
    work(whole, [])
    for step in range(1, whole.life.steps.taken + 1):
        disk, committed = simulated(step, (step,)), list[int]()
        disk.checkpoint_pages = 3
        with pytest.raises(Killed):
            work(disk, committed)
        database = again(disk, power=power).database(path, None) if committed else None
        if database is not None:
            found = [row[0] for row in database.execute("SELECT one FROM rows ORDER BY one")]
            assert found[: len(committed)] == committed
            assert len(found) <= len(committed) + 1


def write_all(disk: SimulatedDisk) -> None:
    # A disk that fails does so now and then.
    for number in range(100):
        disk.write(Path("/state") / str(number), b"data")


def insert_all(database: sqlite3.Connection) -> None:
    for _ in range(100):
        database.execute("INSERT INTO rows VALUES (1)")


@pytest.mark.parametrize("trouble", ["full", "read-only", "failing"])
def test_a_disk_in_trouble_says_so_as_the_system_does(trouble: str) -> None:
    disk = simulated()
    disk.make_folder(Path("/state"))
    database = disk.database(Path("/state/rows.sqlite"), None)
    database.execute("CREATE TABLE rows (one INTEGER)")
    disk.platter.trouble = trouble  # type: ignore[assignment]
    with pytest.raises(OSError, match="/state/") as caught:
        write_all(disk)
    assert caught.value.errno in (errno.ENOSPC, errno.EROFS, errno.EIO)
    with pytest.raises(sqlite3.OperationalError) as said:
        insert_all(database)
    assert is_disk_trouble(said.value)
    disk.platter.trouble = None
    database.execute("INSERT INTO rows VALUES (1)")
