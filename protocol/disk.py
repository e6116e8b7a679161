"""The disk seam: how daemons keep files, and which errors are the disk's own: full, read-only, failing.

All that an agent or a coordinator keeps goes through one `Disk`, so that a simulated one can lose what was not made
durable, be full, or fail, and nothing that the daemons do escapes it (tests/simulator/disk.py).
"""

import errno
import fcntl
import hashlib
import os
import shutil
import sqlite3
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Protocol

from protocol.errors import SparsefleetError

REMEDY = "free disk space, or check the disk and who may write there"

# A journalling file system commits what so many wait for at once (measured on ext4: 200 small files in 50 ms, one after
# the other in 700 ms).
SYNC_THREADS = 8
_BLOCK_BYTES = 1 << 18
_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES})
_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})

Isolation = Literal["DEFERRED"] | None


class Disk(Protocol):
    """Files by path. Only what `sync` returned from survives a power cut: of a file its bytes, of a folder its names.

    Raises OSError as the system does. A file that is not there is FileNotFoundError, but for `remove` and `names`.
    """

    def make_folder(self, path: Path) -> None:
        """With its parents, durably; nothing where it is already."""

    def names(self, folder: Path) -> tuple[str, ...]:
        """What the folder holds, sorted."""

    def size(self, path: Path) -> int:
        """Bytes of a plain file."""

    def read(self, path: Path, start: int = 0, length: int = -1) -> bytes:
        """At most `length` bytes from `start`, or all that follow."""

    def write(self, path: Path, data: bytes) -> None:
        """The whole file anew, in place of what it held."""

    def write_at(self, path: Path, data: bytes, start: int, size: int) -> None:
        """A part of a file that has `size` bytes, and is made so."""

    def sync(self, *paths: Path) -> None:
        """Makes files' bytes, or folders' names, survive a power cut."""

    def rename(self, old: Path, new: Path) -> None:
        """In place of whatever `new` named."""

    def remove(self, path: Path) -> None:
        """A file, if it is there."""

    def remove_folder(self, path: Path) -> None:
        """With all in it, as far as that can be done."""

    def lock(self, path: Path) -> Callable[[], None] | None:
        """Takes a file for this process, until the returned function is called or the process ends. None where another
        has it."""

    def database(self, path: Path, isolation_level: Isolation) -> sqlite3.Connection:
        """An SQLite database in this file, as sqlite3.connect opens it."""


class LocalDisk:
    """The system's own files."""

    def __init__(self) -> None:
        self._syncing: ThreadPoolExecutor | None = None

    def make_folder(self, path: Path) -> None:
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in missing:
            self.sync(folder.parent)

    def names(self, folder: Path) -> tuple[str, ...]:
        try:
            return tuple(sorted(path.name for path in folder.iterdir()))
        except FileNotFoundError:
            return ()

    def size(self, path: Path) -> int:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a plain file", str(path))
        return found.st_size

    def read(self, path: Path, start: int = 0, length: int = -1) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    def write(self, path: Path, data: bytes) -> None:
        path.write_bytes(data)

    def write_at(self, path: Path, data: bytes, start: int, size: int) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            if os.fstat(descriptor).st_size != size:
                os.ftruncate(descriptor, size)
            os.pwrite(descriptor, data, start)
        finally:
            os.close(descriptor)

    def sync(self, *paths: Path) -> None:
        # All at once where there are more: each alone waits for its own commit of the file system's journal, which
        # takes milliseconds, and together they share one.
        if len(paths) < 2:
            for path in paths:
                _sync(path)
            return
        if self._syncing is None:
            self._syncing = ThreadPoolExecutor(SYNC_THREADS, "sync")
        for done in [self._syncing.submit(_sync, path) for path in paths]:
            done.result()

    def rename(self, old: Path, new: Path) -> None:
        old.rename(new)

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def remove_folder(self, path: Path) -> None:
        shutil.rmtree(path, ignore_errors=True)

    def lock(self, path: Path) -> Callable[[], None] | None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return lambda: os.close(descriptor)

    def database(self, path: Path, isolation_level: Isolation) -> sqlite3.Connection:
        return sqlite3.connect(path, isolation_level=isolation_level)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LOCAL = LocalDisk()


def exists(disk: Disk, path: Path) -> bool:
    """Whether there is a plain file."""
    try:
        disk.size(path)
    except FileNotFoundError:
        return False
    return True


def folder_bytes(disk: Disk, folder: Path) -> int:
    """Bytes of all plain files in a folder and those in it; 0 where there is none."""
    found = 0
    for name in disk.names(folder):
        try:
            found += disk.size(folder / name)
        except FileNotFoundError:
            found += folder_bytes(disk, folder / name)
    return found


def digest_of(disk: Disk, path: Path) -> bytes:
    """SHA-256 of a file, which is never in memory whole."""
    digest, start = hashlib.sha256(), 0
    while block := disk.read(path, start, _BLOCK_BYTES):
        digest.update(block)
        start += len(block)
    return digest.digest()


def write_durably(path: Path, data: bytes, disk: Disk = LOCAL) -> None:
    """Writes a file so that after a power cut it has either its old or its new content."""
    write_durably_all({path: data}, disk)


def write_durably_all(files: Mapping[Path, bytes], disk: Disk = LOCAL) -> None:
    """The same of many files of one folder, at the price of a few."""
    temporary = {path: path.with_name(path.name + ".tmp") for path in files}
    for path, data in files.items():
        disk.write(temporary[path], data)
    disk.sync(*temporary.values())
    for path, written in temporary.items():
        disk.rename(written, path)
    disk.sync(*{path.parent for path in files})


def is_disk_trouble(error: BaseException) -> bool:
    """Whether this error says that the disk cannot be written or read for now."""
    if isinstance(error, sqlite3.Error):
        # The lowest byte is the kind, the others say more.
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _CODES
    return isinstance(error, OSError) and error.errno in _NUMBERS


@contextmanager
def disk_named(folder: Path) -> Iterator[None]:
    """Turns the disk's errors into a SparsefleetError that names the folder and the remedy."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if not is_disk_trouble(error):
            raise
        raise SparsefleetError(f"{folder}: {getattr(error, 'strerror', None) or error}; {REMEDY}") from None
