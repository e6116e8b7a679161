"""NumPy files: .npz archives with all arrays, or .npy files named after their array, in one shard or several."""

import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.datasets.examples import FileRows
from edge_agent.datasets.listing import Listing
from edge_agent.datasets.settings import DataSettings
from edge_agent.datasets.shards import BadFile, Ports, Shard, check_room
from protocol.errors import DataError

# A smaller .npy file is read at once; the rows of a larger one when a batch needs them.
_SMALL_BYTES = 4 << 20
# What NumPy raises for damaged files: a header is read as Python's words, by a tokenizer of its own.
_UNREADABLE = (OSError, ValueError, EOFError, MemoryError, RuntimeError, tokenize.TokenError)


def read(settings: DataSettings, ports: Ports, listing: Listing) -> Iterator[Shard | BadFile]:
    """Reader of .npz or .npy files."""
    names = tuple(ports)
    archives = [path for path in listing.paths if path.suffix == ".npz"]
    singles = [path for path in listing.paths if path.suffix == ".npy"]
    if archives and singles:
        where = listing.where
        raise DataError(f"{where}: both .npz and .npy files; keep one kind, or give a glob such as {where}/*.npz")
    taken = 0
    for file in archives:
        try:
            arrays = _archive(file, names)
        except DataError as error:
            yield BadFile(str(error))
            continue
        taken += sum(getattr(array, "nbytes", 0) for array in arrays.values())
        check_room(settings, listing.where, taken)
        yield Shard(str(file), arrays)
    for file, group in _group(singles, names):
        try:
            yield Shard(str(file), {name: _single(group[name]) for name in names if name in group})
        except DataError as error:
            yield BadFile(str(error))


def _group(files: list[Path], names: tuple[str, ...]) -> Iterator[tuple[Path, dict[str, Path]]]:
    """Sorts NAME.npy, NAME-SHARD.npy and NAME_SHARD.npy into shards; yields each shard's first file and all."""
    shards: dict[tuple[Path, str], dict[str, Path]] = {}
    for file in files:
        # The longest name first, so that x-aux.npy belongs to an array x-aux and not to a shard of x.
        for name in sorted(names, key=len, reverse=True):
            shard = file.stem.removeprefix(name)
            if file.stem.startswith(name) and shard[:1] in ("", "-", "_"):
                shards.setdefault((file.parent, shard), {})[name] = file
                break
    if files and not shards:
        wanted = " and ".join(f"{n}.npy" for n in names)
        raise DataError(f"{files[0].parent}: none of its .npy files is named after an array; name them {wanted}")
    for group in shards.values():
        yield next(iter(group.values())), group


def _archive(file: Path, names: tuple[str, ...]) -> Mapping[str, Any]:
    try:
        # Opened here, because numpy.load leaves a damaged archive open.
        with file.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if not isinstance(content, np.lib.npyio.NpzFile):
                return {}
            with content:
                return {name: content[name] for name in names if name in content}
    except (*_UNREADABLE, zipfile.BadZipFile, zlib.error) as error:
        raise _refusal(file, error) from None


def _single(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            found = file.stat()
            if found.st_size <= _SMALL_BYTES:
                content = np.load(stream, allow_pickle=False)
                return content if isinstance(content, np.ndarray) else None
            version = np.lib.format.read_magic(stream)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            shape, by_columns, dtype = read_header(stream)
            offset = stream.tell()
    except _UNREADABLE as error:
        raise _refusal(file, error) from None
    if dtype.hasobject:
        raise _refusal(file, ValueError("allow_pickle"))
    if by_columns or not shape:
        raise DataError(f"{file}: is in Fortran order; save numpy.ascontiguousarray of it")
    if offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize != found.st_size:
        raise _refusal(file, ValueError(f"it has {found.st_size} bytes where shape {shape} takes another number"))
    return FileRows(file, offset, shape, dtype, (found.st_size, found.st_mtime_ns))


def _refusal(file: Path, error: Exception) -> DataError:
    if "allow_pickle" in str(error):
        reason = "it is no NumPy file, or holds Python objects, which are never unpickled; save plain arrays"
    else:
        reason = f"{error}; save it again with numpy.savez or numpy.save"
    return DataError(f"{file}: cannot be read: {reason}")
