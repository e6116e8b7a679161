"""Rows of named columns, of a CSV file or a query, as arrays: which columns make which array, and what is no number."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edge_agent.datasets.labels import number_of
from edge_agent.datasets.settings import DataSettings
from edge_agent.datasets.shards import Ports, Shard, check_room
from edge_agent.runtimes.engine import Array
from protocol.errors import DataError
from protocol.manifest import Port

Cell = str | bytes | int | float | None
_BLOCK_ROWS = 1024


@dataclass(frozen=True, slots=True)
class _Picked:
    """One array's columns, by their places in a row."""

    name: str
    port: Port
    places: tuple[int, ...]

    def values(self, settings: DataSettings, where: str, row: Sequence[Cell]) -> Array | list[float] | int:
        """What a row holds for this array. Raises ValueError for what is no number."""
        first = row[self.places[0]]
        if self.port.dtype == "int64" and len(self.places) == 1:
            return _integer(settings, where, first)
        due = max(1, math.prod(self.port.shape))
        if isinstance(first, bytes) and len(self.places) == 1:
            if len(first) != 4 * due:
                raise ValueError(f"{len(first)} bytes for {self.name}, which takes {due} float32 of 4 each")
            return np.frombuffer(first, "<f4")
        if len(self.places) != due:
            raise ValueError(
                f"one number for {self.name}, which takes {due}; list its columns in data.columns.{self.name}"
            )
        return [_number(row[place]) for place in self.places]


def read_rows(
    settings: DataSettings, ports: Ports, where: str, header: Sequence[str], rows: Iterable[Sequence[Cell]], taken: int
) -> Shard:
    """All rows as one shard. A row that holds no numbers is counted. taken: bytes that earlier shards have."""
    picked = _pick(settings, ports, where, header)
    types = {p.name: np.dtype(np.int64 if p.port.dtype == "int64" else np.float32) for p in picked}
    row_bytes = sum(types[p.name].itemsize * max(1, math.prod(p.port.shape)) for p in picked)
    blocks: dict[str, list[Array]] = {p.name: [] for p in picked}
    held: dict[str, list[Array | list[float] | int]] = {p.name: [] for p in picked}
    count = unreadable = 0
    said = ""

    def flush() -> None:
        for p in picked:
            if held[p.name]:
                blocks[p.name].append(np.asarray(held[p.name], types[p.name]).reshape(-1, *p.port.shape))
                held[p.name].clear()

    for number, row in enumerate(rows, 1):
        try:
            values = [p.values(settings, where, row) for p in picked]
        except (ValueError, IndexError, TypeError) as error:
            unreadable += 1
            said = said or f"{where}: row {number}: {error}"
            continue
        for p, value in zip(picked, values, strict=True):
            held[p.name].append(value)
        count += 1
        if count % _BLOCK_ROWS == 0:
            flush()
            # Twice: of the last step, in which blocks become one array.
            check_room(settings, where, taken + 2 * count * row_bytes)
    flush()
    arrays = {
        p.name: np.concatenate(blocks.pop(p.name)) if blocks[p.name] else np.empty((0, *p.port.shape), types[p.name])
        for p in picked
    }
    return Shard(where, arrays, unreadable=unreadable, said=said)


def _pick(settings: DataSettings, ports: Ports, where: str, header: Sequence[str]) -> list[_Picked]:
    names = [name.strip() for name in header]
    columns = {target: settings.columns.get(target, (target,)) for target in settings.targets}
    claimed = {column for listed in (*columns.values(), *settings.columns.values()) for column in listed}
    for name in settings.inputs:
        listed = settings.columns.get(name)
        # The only input takes all that is not a target.
        rest = tuple(n for n in names if n not in claimed) if len(settings.inputs) == 1 else (name,)
        columns[name] = rest if listed is None else listed
    return [_places(name, ports[name], columns[name], names, where) for name in ports]


def _places(name: str, port: Port, columns: tuple[str, ...], names: list[str], where: str) -> _Picked:
    missing = next((column for column in columns if column not in names), None)
    if missing is not None:
        raise DataError(
            f"{where}: no column {missing!r} for {name} (found: {', '.join(names)[:200]}); "
            f"set data.columns.{name}, or data.inputs and data.target"
        )
    due = max(1, math.prod(port.shape))
    # One column may also hold the bytes of them all.
    if len(columns) not in (1, due) or (len(columns) == 1 and port.dtype == "int64" and due > 1):
        raise DataError(
            f"{where}: {len(columns)} columns for {name}, and {port.name} takes {due} values {port.shape}; "
            f"list those in data.columns.{name}"
        )
    return _Picked(name, port, tuple(names.index(column) for column in columns))


def _number(cell: Cell) -> float:
    if cell is None or cell == "":
        return math.nan
    if isinstance(cell, bytes):
        raise ValueError("bytes where a number is due")
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{cell[:60]!r} is no number" if isinstance(cell, str) else "no number") from None


def _integer(settings: DataSettings, where: str, cell: Cell) -> int:
    if cell is None or isinstance(cell, bytes) or cell == "":
        raise ValueError("no label")
    if isinstance(cell, str):
        return number_of(settings, cell, where)
    if not math.isfinite(cell) or cell != int(cell):
        raise ValueError(f"{cell} is no whole number")
    return int(cell)
