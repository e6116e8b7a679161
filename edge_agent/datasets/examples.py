"""Examples as a batch takes them: arrays in memory, or values kept small, or on the disk, until their turn comes."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.runtimes.engine import Array
from protocol.errors import DataError

_BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class FileRows:
    """The rows of one array in a .npy file, read when they are asked for.

    Read, not mapped: where somebody cuts a mapped file short, the process that touches it is killed. `stamp` is the
    file's size and time of change, and a file that has others is refused.
    """

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    stamp: tuple[int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Array) -> Array:
        result = np.empty((len(rows), *self.shape[1:]), self.dtype)
        size = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        view = result.reshape(-1).view(np.uint8).data
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                whole = all(
                    os.preadv(descriptor, [view[i * size : (i + 1) * size]], self.offset + int(row) * size) == size
                    for i, row in enumerate(rows)
                )
                found = os.fstat(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read any more ({error.strerror}); the task begins anew") from None
        if not whole or (found.st_size, found.st_mtime_ns) != self.stamp:
            raise DataError(f"{self.path}: changed while it was trained on; write new data to a new file")
        return result


@dataclass(frozen=True, slots=True)
class Scaling:
    """Stored numbers become float32 by value * factor + shift; each float32, and of a shape that spreads over rows."""

    factor: Array
    shift: Array


@dataclass(frozen=True, slots=True)
class Column:
    """The values of one input or target, one row for each example.

    parts: one after the other, of the same row shape. dtype: of what batches get. kept: int64[n], the rows that count;
    None where all do.
    """

    parts: tuple[Array | FileRows, ...]
    dtype: np.dtype[np.generic]
    scaling: Scaling | None = None
    kept: Array | None = None

    def __len__(self) -> int:
        return sum(map(len, self.parts)) if self.kept is None else len(self.kept)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.parts[0].shape[1:])

    def __getitem__(self, rows: Array) -> Array:
        taken = self._stored(rows if self.kept is None else self.kept[rows])
        if self.scaling is None:
            return taken.astype(self.dtype, copy=False)
        scaled = taken.astype(np.float32)
        scaled *= self.scaling.factor
        scaled += self.scaling.shift
        return scaled

    def blocks(self) -> Iterator[Array]:
        """All rows in order, a few megabytes at a time."""
        size = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        step = max(1, _BLOCK_BYTES // max(1, size))
        for start in range(0, len(self), step):
            yield self[np.arange(start, min(start + step, len(self)))]

    def _stored(self, places: Array) -> Array:
        if len(self.parts) == 1:
            return self.parts[0][places]
        ends = np.cumsum([len(part) for part in self.parts])
        owners = np.searchsorted(ends, places, side="right")
        first = self.parts[0]
        result = np.empty((len(places), *first.shape[1:]), np.result_type(*(part.dtype for part in self.parts)))
        for owner in np.unique(owners):
            mine = owners == owner
            part = self.parts[owner]
            result[mine] = part[places[mine] - (ends[owner] - len(part))]
        return result


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What of the data is not trained on: examples by why, and files. first: of each kind the first, by its place."""

    labels: int = 0
    non_finite: int = 0
    unreadable: int = 0
    files: int = 0
    first: tuple[str, ...] = ()

    @property
    def examples(self) -> int:
        """Of all kinds; what is in a file that cannot be read, nobody knows."""
        return self.labels + self.non_finite + self.unreadable

    @property
    def count(self) -> int:
        return self.examples + self.files

    def __str__(self) -> str:
        counts = f"labels={self.labels} non_finite={self.non_finite} unreadable={self.unreadable} files={self.files}"
        return f"{counts} first={'; '.join(self.first)!r}"


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples along the first axis of everything, inputs and targets in manifest order and, in batches, of manifest
    types: each an array or a `Column`, which batches take alike by an array of rows."""

    inputs: tuple[Any, ...]
    targets: tuple[Any, ...]
    left_out: LeftOut = LeftOut()

    def __len__(self) -> int:
        return len(self.inputs[0])
