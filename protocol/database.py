"""SQLite files of both daemons: looked through before anything is written to them, and what says that one is damaged.

SQLite has no checksums of its own pages: what can be seen is their structure. Values that must not be acted on when
they are wrong carry a checksum (`sealed`), or name blobs, whose digests are checked.
"""

import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from protocol.disk import is_disk_trouble
from protocol.errors import DamagedError

# Some 4 ms a MiB from memory, so a second at most: a start must not wait for more (docs/guarantees.md).
MOST_CHECKED_BYTES = 256 << 20

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
SEAL_BYTES = 4


def is_damage(error: BaseException) -> bool:
    """Whether this error says that a database holds what nobody wrote."""
    return isinstance(error, sqlite3.Error) and _kind(error) in _DAMAGE


def damaged(path: Path, what: object, lost: str) -> DamagedError:
    """What is said of a damaged database. lost: what starting afresh costs."""
    return DamagedError(
        f"{path}: is damaged ({what}); nothing was changed. Restore it from a backup, with its -wal file if it has "
        f"one, or move the state folder away to start afresh: {lost}"
    )


@contextmanager
def damage_named(path: Path, lost: str) -> Iterator[None]:
    """Turns what SQLite says of a damaged file into a DamagedError that names it and the remedy."""
    try:
        yield
    except sqlite3.Error as error:
        if not is_damage(error):
            raise
        raise damaged(path, error, lost) from None


def check_before_writing(path: Path, lost: str, check: Callable[[sqlite3.Connection], None]) -> None:
    """Looks through a database that is there, by a connection that cannot write, and has `check` look too.

    A connection that could write would carry over at its end what a killed process left in the -wal file. Raises
    DamagedError; the disk's own errors pass.
    """
    if not path.is_file() or path.stat().st_size == 0:
        return
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)) as sql:
            if path.stat().st_size <= MOST_CHECKED_BYTES:
                found = sql.execute("PRAGMA quick_check(1)").fetchone()[0]
                if found != "ok":
                    raise damaged(path, " ".join(str(found).split()), lost)
            check(sql)
    except sqlite3.DatabaseError as error:
        # A file whose making was interrupted must be put right before it can be read.
        if _kind(error) == sqlite3.SQLITE_READONLY:
            return
        if is_disk_trouble(error):
            raise
        raise damaged(path, error, lost) from None
    except UnicodeDecodeError:
        raise damaged(path, "its names are not text", lost) from None


@contextmanager
def transaction(sql: sqlite3.Connection) -> Iterator[None]:
    """All that is written inside, or nothing, on a connection that begins none by itself. It is durable at the end."""
    sql.execute("BEGIN IMMEDIATE")
    try:
        yield
        sql.execute("COMMIT")
    except BaseException:
        # A disk that is full may end the transaction by itself, or leave it open at COMMIT.
        if sql.in_transaction:
            sql.execute("ROLLBACK")
        raise


def sealed(data: bytes) -> bytes:
    """The bytes with their CRC-32 behind them."""
    return data + zlib.crc32(data).to_bytes(SEAL_BYTES, "little")


def unsealed(data: bytes) -> bytes | None:
    """What was sealed; None where it is not what it was."""
    said, seal = data[:-SEAL_BYTES], data[-SEAL_BYTES:]
    return said if zlib.crc32(said).to_bytes(SEAL_BYTES, "little") == seal else None


def _kind(error: sqlite3.Error) -> int:
    # The lowest byte; the others say more.
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
