"""The real SQLite on a simulated disk: a VFS that hands its reads and writes to it, and what looks like sqlite3 on top.

Locks between processes are left out, as each database has one process; the log's index is in memory for the same reason
(locking_mode EXCLUSIVE). All that is written and synced is what SQLite writes and syncs on a real disk.
"""

import errno
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from protocol.disk import Isolation
from tests.simulator.life import Killed

if TYPE_CHECKING:
    from tests.simulator.disk import File, SimulatedDisk

Values = Sequence[Any] | Mapping[str, Any]

_VFS = "simulated"
_CHANGES = ("INSERT", "UPDATE", "DELETE", "REPLACE")
# With the first sync of a file of these kinds SQLite also makes its name in the folder survive.
_NAMED = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL
_ERRORS: dict[int, type[apsw.Error]] = {
    errno.ENOSPC: apsw.FullError,
    errno.EROFS: apsw.ReadOnlyError,
    errno.EIO: apsw.IOError,
}
_KINDS: tuple[tuple[type[apsw.Error], int, type[sqlite3.Error]], ...] = (
    (apsw.FullError, sqlite3.SQLITE_FULL, sqlite3.OperationalError),
    (apsw.ReadOnlyError, sqlite3.SQLITE_READONLY, sqlite3.OperationalError),
    (apsw.IOError, sqlite3.SQLITE_IOERR, sqlite3.OperationalError),
    (apsw.CantOpenError, sqlite3.SQLITE_CANTOPEN, sqlite3.OperationalError),
    (apsw.ConstraintError, sqlite3.SQLITE_CONSTRAINT, sqlite3.IntegrityError),
    (apsw.CorruptError, sqlite3.SQLITE_CORRUPT, sqlite3.DatabaseError),
    (apsw.NotADBError, sqlite3.SQLITE_NOTADB, sqlite3.DatabaseError),
)


def open_database(disk: "SimulatedDisk", path: Path, isolation_level: Isolation) -> "Database":
    """The database in this file of the disk, to be used as a sqlite3.Connection."""
    key = next(_keys)
    _vfs.disks[str(key)] = disk
    try:
        connection = apsw.Connection(f"/{key}{path}", vfs=_VFS)
        # Before the first look at the file: without shared memory there is no other way to a write-ahead log.
        connection.execute(f"PRAGMA locking_mode = EXCLUSIVE; PRAGMA wal_autocheckpoint = {disk.checkpoint_pages}")
    except apsw.Error as error:
        raise _translated(error) from None
    return Database(disk, connection, isolation_level, str(key))


class Rows:
    """What a statement found, and how many rows it changed."""

    def __init__(self, rows: list[Any], changed: int) -> None:
        self._rows, self.rowcount = iter(rows), changed

    def __iter__(self) -> Iterator[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)


class Database:
    """As much of sqlite3.Connection as the stores use, with its transactions and its errors."""

    def __init__(
        self, disk: "SimulatedDisk", connection: apsw.Connection, isolation_level: Isolation, key: str
    ) -> None:
        self._disk, self._connection, self._isolation_level, self._key = disk, connection, isolation_level, key

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.commit()
        else:
            self.rollback()

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, statement: str, values: Values = ()) -> Rows:
        begins = self._isolation_level is not None and statement.lstrip()[:7].upper().startswith(_CHANGES)
        if begins and not self.in_transaction:
            self._run("BEGIN")
        return Rows(self._run(statement, values), self._connection.changes())

    def executescript(self, script: str) -> None:
        self.commit()
        self._run(script)

    def commit(self) -> None:
        if self.in_transaction:
            self._run("COMMIT")

    def rollback(self) -> None:
        if self.in_transaction:
            self._run("ROLLBACK")

    def close(self) -> None:
        with suppress(apsw.Error):
            self._connection.close(True)
        _vfs.disks.pop(self._key, None)

    def _run(self, statement: str, values: Values = ()) -> list[Any]:
        life = self._disk.life
        commits = statement == "COMMIT"
        if commits or not life.alive:
            life.step("commit")
        try:
            found = list(self._connection.execute(statement, values))
        except apsw.Error as error:
            if not life.alive:
                raise Killed from None
            raise _translated(error) from None
        if commits:
            life.step("committed")
        return found


def _translated(error: apsw.Error) -> sqlite3.Error:
    for kind, code, known in _KINDS:
        if isinstance(error, kind):
            found = known(str(error))
            found.sqlite_errorcode = code
            return found
    return sqlite3.OperationalError(f"{type(error).__name__}: {error}")


class _OpenFile:
    """A file that SQLite has open."""

    def __init__(self, disk: "SimulatedDisk", path: Path, flags: int) -> None:
        self._disk, self._path = disk, path
        self._file: File
        self._unnamed = bool(flags & _NAMED)
        self._file = disk.open_file(path)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        return bytes(self._file.data[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self._disk.life.alive:
            with _Troubles():
                self._disk.part_of(self._path, self._file, offset, bytes(data))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        if self._disk.life.alive:
            with _Troubles():
                self._disk.touch("truncate", self._path)
                self._file.resize(size)

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._disk.life.alive:
            with _Troubles():
                self._disk.touch("sync", self._path)
                self._file.sync()
                if self._unnamed:
                    self._disk.sync(self._path.parent)
                    self._unnamed = False

    def xFileSize(self) -> int:  # noqa: N802
        return len(self._file.data)

    def xLock(self, level: int) -> None:  # noqa: N802
        pass

    def xUnlock(self, level: int) -> None:  # noqa: N802
        pass

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, operation: int, pointer: int) -> bool:  # noqa: N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return 512

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return 0

    def xClose(self) -> None:  # noqa: N802
        pass


class _Troubles:
    """Says the disk's errors in SQLite's words."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError):
            raise _ERRORS.get(error.errno or 0, apsw.IOError)(str(error)) from None


class _Vfs(apsw.VFS):
    """Finds a file's disk by the first part of its name, which is a connection's number."""

    def __init__(self) -> None:
        super().__init__(_VFS, base="")
        self.disks: dict[str, SimulatedDisk] = {}

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802
        disk, path = self._at(name.filename() if isinstance(name, apsw.URIFilename) else name)
        with _Troubles():
            return _OpenFile(disk, path, flags[0])

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        disk, path = self._at(filename)
        if disk.life.alive:
            with _Troubles():
                disk.remove(path)
                if syncdir:
                    disk.sync(path.parent)

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        disk, path = self._at(pathname)
        return disk.platter.find(path) is not None

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name

    def _at(self, name: str) -> tuple["SimulatedDisk", Path]:
        _, key, path = name.split("/", 2)
        return self.disks[key], Path("/" + path)


_keys = count()
_vfs = _Vfs()
