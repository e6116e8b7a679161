"""Labels of files: by the folder each is in, or by a table beside them; and from names to the model's classes."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.datasets.listing import Listing
from edge_agent.datasets.settings import DataSettings
from protocol.errors import DataError

TABLE = "labels.csv"
# A label that is none of the classes: out of range for every model.
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Labels:
    """Finds the label of a file. table: by path, where there is one; otherwise the folder's name is the label."""

    settings: DataSettings
    table: Mapping[Path, str] | None

    def of(self, path: Path) -> int | None:
        """The file's class; None where it has no label."""
        said = path.parent.name if self.table is None else self.table.get(path)
        return None if said is None else number_of(self.settings, said, str(path))


def number_of(settings: DataSettings, said: str, where: str) -> int:
    """The class that a label's text names, UNKNOWN if it names none. Raises DataError for a name without `classes`:
    numbers made up here would be others on another device."""
    said = said.strip()
    if settings.classes:
        return settings.classes.index(said) if said in settings.classes else UNKNOWN
    try:
        value = float(said)
        return int(value) if value == int(value) and abs(value) < 1 << 62 else UNKNOWN
    except (ValueError, OverflowError):
        raise DataError(
            f"{where}: its label is {said[:60]!r}; list the labels' names in data.classes, in the order of the model's"
            " classes and the same on every device"
        ) from None


def labels_of(settings: DataSettings, listing: Listing) -> Labels:
    """How the files of a listing are labelled. Raises DataError if the table that is asked for is not there."""
    wanted = TABLE if settings.labels == "auto" else settings.labels
    tables = [path for path in listing.paths if path.name == wanted]
    if settings.labels == "folder" or (settings.labels == "auto" and not tables):
        return Labels(settings, None)
    if not tables:
        raise DataError(
            f'{listing.where}: no {wanted} there; write it, with columns file,label, or set data.labels = "folder"'
        )
    table: dict[Path, str] = {}
    for path in tables:
        table |= _read(path)
    return Labels(settings, table)


def _read(path: Path) -> dict[Path, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read: {error}; write it as UTF-8 text, with columns file,label") from None
    if rows and [cell.strip().lower() for cell in rows[0][:2]] == ["file", "label"]:
        del rows[0]
    bad = next((row for row in rows if len(row) < 2), None)
    if bad is not None:
        raise DataError(f"{path}: {bad[0][:60]!r} has no label; write file,label in each line")
    return {path.parent / row[0].strip(): row[1] for row in rows}
