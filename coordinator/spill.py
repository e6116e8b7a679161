"""The updates of a fold side by side, for rules that need them all at once: in memory if small, else in a file.

Each payload is decoded once, into a row. The file has no name and is gone with its descriptor, whatever happens.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.float32]
Delta = npt.NDArray[np.float64]

# Up to so many bytes stay in memory.
IN_MEMORY = 64 << 20
# A block of coordinates has so many values of all devices together: 8 MiB in float64.
_BLOCK_VALUES = 1 << 20


@contextmanager
def rows_for(devices: int, n: int, folder: Path) -> Iterator[Rows]:
    """Room for float32[devices, n], NaN where a device has nothing to say; a file in `folder` where it is large."""
    if 4 * devices * n <= IN_MEMORY:
        yield np.empty((devices, n), np.float32)
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        yield np.memmap(file, np.float32, "w+", shape=(devices, n))


def blocks(devices: int, start: int, stop: int) -> Iterator[slice]:
    """The coordinates from start to stop, so many at a time that a block of all devices is small."""
    size = max(1, _BLOCK_VALUES // max(1, devices))
    for at in range(start, stop, size):
        yield slice(at, min(stop, at + size))
