"""An SQLite file and a query of the owner's: each row is an example. The file is opened for reading alone."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from edge_agent.datasets.listing import Listing
from edge_agent.datasets.settings import DataSettings
from edge_agent.datasets.shards import BadFile, Ports, Shard
from edge_agent.datasets.tables import read_rows
from protocol.errors import DataError

# What a query for reading does; all else, as ATTACH or an extension's functions that write, is denied.
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_WAIT_S = 5.0


def read(settings: DataSettings, ports: Ports, listing: Listing) -> Iterator[Shard | BadFile]:
    """Reader of SQLite files by `query`; say ORDER BY, so that the order is the same each time."""
    if not settings.query:
        raise DataError(
            f'{listing.where}: data.query: say which rows, for example query = "SELECT a, b, y FROM t ORDER BY rowid"'
        )
    taken = 0
    for path in listing.paths:
        try:
            shard = _query(settings, ports, path, taken)
        except DataError as error:
            yield BadFile(str(error))
            continue
        taken += sum(array.nbytes for array in shard.arrays.values())
        yield shard


def _query(settings: DataSettings, ports: Ports, path: Path, taken: int) -> Shard:
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=_WAIT_S)) as database:
            database.execute("PRAGMA query_only = 1")
            database.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY)
            with closing(database.execute(settings.query)) as rows:
                if rows.description is None:
                    raise DataError(f"{path}: data.query: {settings.query[:100]!r} returns no rows; write a SELECT")
                header = [column[0] for column in rows.description]
                return read_rows(settings, ports, str(path), header, rows, taken)
    except (sqlite3.Error, sqlite3.Warning, OSError) as error:
        raise DataError(f"{path}: {error}; check data.path, data.query, and that the file may be read") from None
