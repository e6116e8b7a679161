"""A device's own data: arrays from files or a function, checked against the bundle, dealt out in shuffled batches."""

import importlib
import math
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.runtimes.engine import Array, Batch
from protocol.errors import DataError
from protocol.manifest import Manifest, Port


@dataclass(frozen=True, slots=True)
class DataSettings:
    """Where the data is, by exactly one of `path` and `source`, and what its arrays are called.

    path: a .npz file with all arrays; a folder or a glob of such files; or a folder or a glob of .npy files named
    after their array, x.npy beside y.npy, in several shards x-0.npy beside y-0.npy and so on.
    source: "module:function" that returns a mapping of names to arrays, or (inputs, targets), each an array or a tuple
    of arrays. inputs, target: array names in the order of the bundle's inputs and targets.
    """

    path: str | None = None
    source: str | None = None
    inputs: tuple[str, ...] = ("x",)
    target: str | tuple[str, ...] = "y"

    def __post_init__(self) -> None:
        if (self.path is None) == (self.source is None):
            raise ValueError("path: give either path (files) or source (module:function), and not both")
        if self.source is not None and not all(self.source.partition(":")):
            raise ValueError(f"source: {self.source!r} must be module:function, for example mydata:load")
        names = self.inputs + self.targets
        if len(set(names)) < len(names) or not all(names):
            raise ValueError(f"inputs: the names of inputs and targets must differ and not be empty, found {names}")

    @property
    def targets(self) -> tuple[str, ...]:
        return (self.target,) if isinstance(self.target, str) else self.target


@dataclass(frozen=True, slots=True)
class Dataset:
    """Examples along the first axis of every array, inputs and targets in manifest order and of manifest types."""

    inputs: tuple[Array, ...]
    targets: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.inputs[0])


def load(settings: DataSettings, manifest: Manifest, base: Path | None = None) -> Dataset:
    """Reads all data into memory, once, and checks it.

    A relative path starts at `base` (the folder of the settings file; the current folder when None), and a source's
    module is also looked for there, after everything that is installed.
    Floating point arrays are cast to float32 and integers to int64 where the bundle says so; nothing else is
    converted. Raises DataError that names the file, the array, the value and the remedy.
    """
    ports = _ports(settings, manifest)
    base = base or Path()
    if settings.path is not None:
        shards = [_check(where, arrays, ports) for where, arrays in _read_files(base, settings.path, tuple(ports))]
    else:
        assert settings.source is not None
        shards = [_check(settings.source, _call(settings, settings.source, base), ports)]
    joined = {name: _join([shard.pop(name) for shard in shards]) for name in ports}
    return Dataset(tuple(joined[n] for n in settings.inputs), tuple(joined[n] for n in settings.targets))


def batches(dataset: Dataset, batch_size: int, rng: np.random.Generator, skip: int = 0) -> Iterator[Batch]:
    """Endless batches of `batch_size` examples, in a new order every epoch; the order depends on `rng` alone.

    skip: of the first so many only the order is drawn, so that training goes on where it was.

    What is left at the end of an epoch is dropped, since a smaller batch would weigh its examples more and a batch of
    one breaks BatchNorm; a dataset smaller than `batch_size` is one batch.
    """
    assert batch_size >= 1, f"batches of {batch_size} examples"
    assert len(dataset) >= 1, "no examples"
    size = min(batch_size, len(dataset))
    while True:
        order = rng.permutation(len(dataset))
        for start in range(0, len(order) - size + 1, size):
            if skip:
                skip -= 1
                continue
            chosen = order[start : start + size]
            yield Batch(tuple(a[chosen] for a in dataset.inputs), tuple(a[chosen] for a in dataset.targets))


def _ports(settings: DataSettings, manifest: Manifest) -> dict[str, Port]:
    result: dict[str, Port] = {}
    sides = (("inputs", settings.inputs, manifest.inputs), ("target", settings.targets, manifest.targets))
    for key, names, ports in sides:
        if len(names) != len(ports):
            wanted = ", ".join(f"{p.name} {p.dtype}{p.shape}" for p in ports) or "none"
            raise DataError(f"data.{key}: {len(names)} names {names} for {len(ports)} in the bundle ({wanted})")
        result |= zip(names, ports, strict=True)
    return result


# Reading


def _read_files(base: Path, path: str, names: tuple[str, ...]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        pattern = base / Path(path).expanduser()
        files = _expand(pattern)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path}: cannot be listed: {error}; check data.path") from None
    archives = [f for f in files if f.suffix == ".npz"]
    singles = [f for f in files if f.suffix == ".npy"]
    if archives and singles:
        raise DataError(f"{pattern}: both .npz and .npy files; keep one kind, or give a glob such as {pattern}/*.npz")
    if not archives and not singles:
        raise DataError(f"{pattern}: no .npz or .npy files there; check data.path")
    for file in archives:
        yield str(file), _read(file, names)
    for file, group in _group(singles, names):
        arrays: dict[str, Any] = {}
        for name in names:
            if name in group:
                arrays |= _read(group[name], (name,))
        yield str(file), arrays


def _expand(pattern: Path) -> list[Path]:
    if pattern.is_file():
        return [pattern]
    if pattern.is_dir():
        return sorted(p for p in pattern.iterdir() if p.is_file())
    return sorted(p for p in Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor))) if p.is_file())


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


def _read(file: Path, names: tuple[str, ...]) -> Mapping[str, Any]:
    try:
        # Opened here, because numpy.load leaves a damaged archive open.
        with file.open("rb") as stream:
            content = np.load(stream, allow_pickle=False)
            if not isinstance(content, np.lib.npyio.NpzFile):
                return {names[0]: content} if file.suffix == ".npy" else {}
            with content:
                return {name: content[name] for name in names if name in content}
    except (OSError, ValueError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            reason = "it is no NumPy file, or holds Python objects, which are never unpickled; save plain arrays"
        else:
            reason = f"{error}; save it again with numpy.savez or numpy.save"
        raise DataError(f"{file}: cannot be read: {reason}") from None


def _call(settings: DataSettings, source: str, base: Path) -> Mapping[str, Any]:
    module_name, _, function_name = source.partition(":")
    folder = str(base.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    try:
        function = getattr(importlib.import_module(module_name), function_name, None)
    except ImportError as error:
        raise DataError(f"{source}: {error}; install the module or put it in {base.resolve()}") from None
    if not callable(function):
        raise DataError(f"{source}: {module_name} has no function {function_name!r}; check data.source")
    result = function()
    if isinstance(result, Mapping):
        return result
    if not isinstance(result, tuple) or len(result) != 2:
        raise DataError(f"{source}: returned {type(result).__name__}; return a dict of arrays or (inputs, targets)")
    arrays: dict[str, Any] = {}
    for key, names, side in (("inputs", settings.inputs, result[0]), ("targets", settings.targets, result[1])):
        parts = side if isinstance(side, tuple) else (side,)
        if len(parts) != len(names):
            raise DataError(f"{source}: returned {len(parts)} {key} where data.{key} names {len(names)}: {names}")
        arrays |= zip(names, parts, strict=True)
    return arrays


# Checking


def _check(where: str, arrays: Mapping[str, Any], ports: Mapping[str, Port]) -> dict[str, Array]:
    """One shard's arrays, checked and of the bundle's types. `where` is its file or function."""
    checked: dict[str, Array] = {}
    for name, port in ports.items():
        if name not in arrays:
            found = ", ".join(map(str, arrays)) or "none"
            raise DataError(f"{where}: no array {name!r} (found: {found}); save it, or set data.inputs and data.target")
        try:
            array = np.asarray(arrays[name])
        except ValueError as error:
            raise DataError(f"{where}: {name} is not an array: {error}") from None
        _check_shape(where, name, array, port)
        checked[name] = _floats(where, name, array) if port.dtype == "float32" else _integers(where, name, array, port)
    lengths = {name: len(array) for name, array in checked.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise DataError(f"{where}: arrays of different lengths, {said}; every example needs a row in each")
    return checked


def _check_shape(where: str, name: str, array: Array, port: Port) -> None:
    if array.ndim > 0 and len(array) == 0:
        raise DataError(f"{where}: {name} is empty; remove it, or give the device some examples")
    if array.ndim > 0 and array.shape[1:] == port.shape:
        return
    remedy = "is the bundle meant for this data?"
    if array.ndim > 0 and math.prod(array.shape[1:]) == math.prod(port.shape):
        remedy = f"{name}.reshape({', '.join(map(str, (-1, *port.shape)))}) mends it if the order of values is right"
    wanted = ("n", *port.shape)
    raise DataError(f"{where}: {name} has shape {array.shape} where {port.name} takes {_shape(wanted)}; {remedy}")


def _floats(where: str, name: str, array: Array) -> Array:
    if array.dtype.kind != "f":
        remedy = f"{name}.astype('float32')" + (" / 255" if array.dtype == np.uint8 else "")
        raise DataError(f"{where}: {name} is {array.dtype} where the bundle takes float32; scale it, e.g. {remedy}")
    with np.errstate(over="ignore"):
        result = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(result)
    if not finite.all():
        at = _first(~finite)
        raise DataError(
            f"{where}: {name}[{_index(at)}] is {array[at]}, not a finite float32; remove such examples or fill them in"
        )
    return result


def _integers(where: str, name: str, array: Array, port: Port) -> Array:
    if array.dtype.kind not in "iu":
        raise DataError(f"{where}: {name} is {array.dtype} where integers are due; convert it, {name}.astype('int64')")
    top = np.iinfo(np.int64).max if port.classes is None else port.classes - 1
    wrong = array > top
    if port.classes is not None:
        wrong |= array < 0
    if wrong.any():
        at = _first(wrong)
        remedy = "number the labels from 0, or export the bundle for more classes"
        raise DataError(f"{where}: {name}[{_index(at)}] is {array[at]}, out of 0 to {top}; {remedy}")
    return np.ascontiguousarray(array, dtype=np.int64)


def _join(shards: list[Array]) -> Array:
    """All shards one after the other. Each is freed once copied, so that the peak is the data and one shard."""
    if len(shards) == 1:
        return shards[0]
    shards.reverse()
    joined = np.empty((sum(map(len, shards)), *shards[0].shape[1:]), dtype=shards[0].dtype)
    filled = 0
    while shards:
        shard = shards.pop()
        joined[filled : filled + len(shard)] = shard
        filled += len(shard)
    return joined


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape))


def _index(at: tuple[int, ...]) -> str:
    return ", ".join(map(str, at))


def _shape(shape: tuple[object, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
