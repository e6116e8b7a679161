"""CSV files with a header line and one example in each row."""

import csv
from collections.abc import Iterator

from edge_agent.datasets.listing import Listing
from edge_agent.datasets.settings import DataSettings
from edge_agent.datasets.shards import BadFile, Ports, Shard
from edge_agent.datasets.tables import read_rows
from protocol.errors import DataError


def read(settings: DataSettings, ports: Ports, listing: Listing) -> Iterator[Shard | BadFile]:
    """Reader of .csv files: comma, semicolon or tab between values, a point before decimals."""
    taken = 0
    for path in listing.paths:
        if path.suffix.lower() != ".csv":
            continue
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                first = file.readline()
                separator = max(",;\t", key=first.count)
                header = next(csv.reader([first], delimiter=separator), [])
                rows = (row for row in csv.reader(file, delimiter=separator, strict=True) if row)
                shard = read_rows(settings, ports, str(path), header, rows, taken)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            yield BadFile(f"{path}: cannot be read: {error}; write it as UTF-8 text with a header line")
            continue
        except DataError as error:
            yield BadFile(str(error))
            continue
        taken += sum(array.nbytes for array in shard.arrays.values())
        yield shard
