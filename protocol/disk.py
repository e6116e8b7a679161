"""Which errors are the disk's own: full, read-only, failing. No bug, and over once the disk is mended."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import SparsefleetError

REMEDY = "free disk space, or check the disk and who may write there"

_NUMBERS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.EACCES})
_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})


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
