"""A disk in memory that keeps apart what was written and what was made durable, so that the power can be cut.

Stricter than file systems are: after a power cut any subset of the writes since a file's last sync may be there, one of
them torn, and any subset of the names that a folder gained, changed or lost since its own last sync. Folders are
durable once made, as `Disk.make_folder` promises.
"""

import errno
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from random import Random
from typing import Literal, cast

from protocol.disk import Isolation
from tests.simulator.life import Life
from tests.simulator.sqlite import Database, open_database

Trouble = Literal["full", "read-only", "failing"]

_NUMBERS: dict[Trouble, int] = {"full": errno.ENOSPC, "read-only": errno.EROFS, "failing": errno.EIO}
# What a power cut tears a write at.
SECTOR = 512


@dataclass(slots=True)
class File:
    """data: as processes see it. durable: at the last sync. pending: writes since, each (start, bytes), and sizes set,
    each (size, None)."""

    data: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def write(self, start: int, data: bytes) -> None:
        _write(self.data, start, data)
        self.pending.append((start, data))

    def resize(self, size: int) -> None:
        if len(self.data) != size:
            _resize(self.data, size)
            self.pending.append((size, None))

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.durable, change)
        self.pending.clear()

    def cut(self, rng: Random) -> None:
        """Forgets what was not made durable, or any part of it."""
        share = rng.choice((0.0, 0.5, 0.9, 1.0))
        for start, data in self.pending:
            if rng.random() >= share:
                continue
            if data is not None and len(data) > 1 and rng.random() < 0.2:
                data = data[: rng.randrange(1, len(data)) // SECTOR * SECTOR or rng.randrange(len(data))]
            _apply(self.durable, (start, data))
        self.pending.clear()
        self.data = bytearray(self.durable)


def _apply(content: bytearray, change: tuple[int, bytes | None]) -> None:
    place, data = change
    if data is None:
        _resize(content, place)
    else:
        _write(content, place, data)


def _write(content: bytearray, start: int, data: bytes) -> None:
    if len(content) < start:
        content.extend(bytes(start - len(content)))
    content[start : start + len(data)] = data


def _resize(content: bytearray, size: int) -> None:
    del content[size:]
    content.extend(bytes(size - len(content)))


# A folder's change: each name, and the file that it means from then on.
Renaming = tuple[tuple[str, File | None], ...]


@dataclass(slots=True)
class Folder:
    """names: as processes see them. durable: at the last sync. pending: changes since."""

    names: dict[str, File] = field(default_factory=dict)
    durable: dict[str, File] = field(default_factory=dict)
    pending: list[Renaming] = field(default_factory=list)

    def change(self, *renaming: tuple[str, File | None]) -> None:
        _rename(self.names, renaming)
        self.pending.append(renaming)

    def sync(self) -> None:
        for renaming in self.pending:
            _rename(self.durable, renaming)
        self.pending.clear()

    def cut(self, rng: Random) -> None:
        ordered, share = rng.random() < 0.5, rng.choice((0.0, 0.5, 1.0))
        for renaming in self.pending:
            if rng.random() < share:
                _rename(self.durable, renaming)
            elif ordered:
                # A journal keeps the order: what follows something that is lost is lost as well.
                break
        self.pending.clear()
        self.names = dict(self.durable)


def _rename(names: dict[str, File], renaming: Renaming) -> None:
    for name, file in renaming:
        if file is None:
            names.pop(name, None)
        else:
            names[name] = file


class Platter:
    """What a machine's disk holds, from one process to the next. trouble: what it answers writes with, if anything."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.folders: dict[str, Folder] = {"/": Folder()}
        self.trouble: Trouble | None = None
        self.locked: set[str] = set()

    def cut_power(self) -> None:
        for path in sorted(self.folders):
            folder = self.folders[path]
            found = {id(file): file for file in (*folder.names.values(), *folder.durable.values())}
            for renaming in folder.pending:
                found |= {id(file): file for _, file in renaming if file is not None}
            folder.cut(self.rng)
            for file in found.values():
                file.cut(self.rng)

    def flip_bit(self, path: Path) -> None:
        """On the medium: no sync heals it."""
        file = self.find(path)
        if file is not None and file.data:
            place, bit = self.rng.randrange(len(file.data)), 1 << self.rng.randrange(8)
            file.data[place] ^= bit
            if place < len(file.durable):
                file.durable[place] ^= bit

    def find(self, path: Path) -> File | None:
        folder = self.folders.get(_text(path.parent))
        return None if folder is None else folder.names.get(path.name)

    def files(self, folder: Path) -> list[Path]:
        found = self.folders.get(_text(folder))
        return [] if found is None else [folder / name for name in sorted(found.names)]

    def used_bytes(self, folder: Path) -> int:
        found = self.folders.get(_text(folder))
        return 0 if found is None else sum(len(file.data) for file in found.names.values())


class SimulatedDisk:
    """A platter as one process sees it: the `Disk` of a daemon. checkpoint_pages: after so many in its log SQLite
    writes them back into the database."""

    def __init__(self, platter: Platter, life: Life, checkpoint_pages: int = 1000) -> None:
        self.platter, self.life, self.checkpoint_pages = platter, life, checkpoint_pages
        self._databases: list[Database] = []

    def make_folder(self, path: Path) -> None:
        missing = [p for p in (path, *path.parents) if _text(p) not in self.platter.folders]
        if missing:
            self._act("mkdir", path)
            for folder in missing:
                self.platter.folders[_text(folder)] = Folder()

    def names(self, folder: Path) -> tuple[str, ...]:
        found = self.platter.folders.get(_text(folder))
        if found is None:
            return ()
        prefix = _text(folder).rstrip("/") + "/"
        below = {path[len(prefix) :] for path in self.platter.folders if path.startswith(prefix)}
        return tuple(sorted({*found.names, *(name for name in below if name and "/" not in name)}))

    def size(self, path: Path) -> int:
        return len(self._file(path).data)

    def read(self, path: Path, start: int = 0, length: int = -1) -> bytes:
        self._may_fail("read", path)
        content = self._file(path).data
        return bytes(content[start : len(content) if length < 0 else start + length])

    def write(self, path: Path, data: bytes) -> None:
        file = self._made(path)
        self._act("truncate", path)
        file.resize(0)
        self._write(path, file, 0, data)

    def write_at(self, path: Path, data: bytes, start: int, size: int) -> None:
        file = self._made(path)
        if len(file.data) != size:
            self._act("resize", path)
            file.resize(size)
        self._write(path, file, start, data)

    def sync(self, *paths: Path) -> None:
        for path in paths:
            self._act("sync", path)
            folder = self.platter.folders.get(_text(path))
            if folder is None:
                self._file(path).sync()
            else:
                folder.sync()

    def rename(self, old: Path, new: Path) -> None:
        assert old.parent == new.parent, "nothing is moved from folder to folder"
        file = self._file(old)
        self._act("rename", new)
        self.platter.folders[_text(old.parent)].change((old.name, None), (new.name, file))

    def remove(self, path: Path) -> None:
        if self.platter.find(path) is not None:
            self._act("remove", path)
            self.platter.folders[_text(path.parent)].change((path.name, None))

    def remove_folder(self, path: Path) -> None:
        prefix = _text(path)
        self._act("remove", path)
        for folder in [p for p in self.platter.folders if p == prefix or p.startswith(prefix + "/")]:
            del self.platter.folders[folder]

    def lock(self, path: Path) -> Callable[[], None] | None:
        if _text(path) in self.platter.locked:
            return None
        self.platter.locked.add(_text(path))
        return lambda: self.platter.locked.discard(_text(path))

    def database(self, path: Path, isolation_level: Isolation) -> sqlite3.Connection:
        database = open_database(self, path, isolation_level)
        self._databases.append(database)
        return cast(sqlite3.Connection, database)

    def close_databases(self) -> None:
        """Of a process that ended, wherever it was; nothing is written any more."""
        for database in self._databases:
            database.close()

    # What SQLite needs besides

    def part_of(self, path: Path, file: File, start: int, data: bytes) -> None:
        """Writes into an open file, whatever it is called by now."""
        self._write(path, file, start, data)

    def open_file(self, path: Path) -> File:
        """An open file, made if it is not there."""
        return self._made(path)

    def touch(self, what: str, path: Path) -> None:
        """A step on an open file that writes nothing yet."""
        self._act(what, path)

    def _write(self, path: Path, file: File, start: int, data: bytes) -> None:
        try:
            self._act(f"write {start}+{len(data)}", path)
        except BaseException:
            # Ended in the middle of it: a part may be there.
            if data and self.platter.rng.random() < 0.5:
                file.write(start, data[: self.platter.rng.randrange(len(data))])
            raise
        file.write(start, data)

    def _file(self, path: Path) -> File:
        file = self.platter.find(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return file

    def _made(self, path: Path) -> File:
        file = self.platter.find(path)
        if file is None:
            folder = self.platter.folders.get(_text(path.parent))
            if folder is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            self._act("create", path)
            file = File()
            folder.change((path.name, file))
        return file

    def _act(self, what: str, path: Path) -> None:
        self.life.step(f"{what} {path}")
        trouble = self.platter.trouble
        if trouble is None or (trouble == "full" and what.startswith(("remove", "rename", "sync", "truncate"))):
            return
        self._may_fail(what, path)
        if trouble != "failing":
            self._raise(trouble, path)

    def _may_fail(self, what: str, path: Path) -> None:
        """A disk that fails does so now and then, at reads too."""
        if self.platter.trouble == "failing" and self.platter.rng.random() < 0.3:
            self.life.steps.trace(f"fails at {what} {path}")
            self._raise("failing", path)

    def _raise(self, trouble: Trouble, path: Path) -> None:
        raise OSError(_NUMBERS[trouble], os.strerror(_NUMBERS[trouble]), str(path))


def _text(path: PurePosixPath | Path) -> str:
    return str(path)
