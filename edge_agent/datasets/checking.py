"""What readers found, against what the model takes: wrong shapes and types refused, unusable examples left out."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edge_agent.datasets.examples import Column, FileRows, LeftOut, Scaling
from edge_agent.datasets.shards import BadFile, Ports, Shard
from edge_agent.runtimes.engine import Array
from protocol.errors import DataError
from protocol.manifest import Port

_BLOCK_ROWS = 4096
# Of those left out, so many are named.
_NAMED = 5


@dataclass(slots=True)
class Tally:
    """What was found and what of it is left out, over all shards. found: examples, the unusable among them."""

    found: int = 0
    labels: int = 0
    non_finite: int = 0
    unreadable: int = 0
    files: int = 0
    first: list[str] = field(default_factory=list)

    def bad_file(self, bad: BadFile) -> None:
        self.files += 1
        self.say(bad.why)

    def say(self, said: str) -> None:
        if said and len(self.first) < _NAMED:
            self.first.append(said)

    @property
    def left_out(self) -> LeftOut:
        return LeftOut(self.labels, self.non_finite, self.unreadable, self.files, tuple(self.first))


@dataclass(frozen=True, slots=True)
class Checked:
    """A shard's arrays, of the bundle's shapes and kinds, and which rows count: bool[n], or None where all do."""

    arrays: Mapping[str, Array | FileRows]
    scaling: Mapping[str, Scaling]
    good: Array | None


def check(shard: Shard, ports: Ports, tally: Tally) -> Checked:
    """Counts what is unusable. Raises DataError for a shard that does not fit as a whole."""
    arrays: dict[str, Array | FileRows] = {}
    for name, port in ports.items():
        if name not in shard.arrays:
            found = ", ".join(map(str, shard.arrays)) or "none"
            raise DataError(
                f"{shard.where}: no array {name!r} (found: {found}); save it, or set data.inputs and data.target"
            )
        held = shard.arrays[name]
        try:
            array = held if isinstance(held, FileRows) else np.asarray(held)
        except ValueError as error:
            raise DataError(f"{shard.where}: {name} is not an array: {error}") from None
        _check_shape(shard.where, name, array.shape, port, empty=shard.unreadable > 0)
        _check_kind(shard.where, name, array.dtype, port, name in shard.scaling)
        arrays[name] = _cast(array, port) if name not in shard.scaling else array
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{name} has {n}" for name, n in lengths.items())
        raise DataError(f"{shard.where}: arrays of different lengths, {said}; every example needs a row in each")
    tally.found += next(iter(lengths.values())) + shard.unreadable
    tally.unreadable += shard.unreadable
    tally.say(shard.said)
    return Checked(arrays, shard.scaling, _good(shard, arrays, ports, tally))


def joined(name: str, shards: Sequence[Checked], port: Port) -> Array | Column:
    """One input or target over all shards: a plain array where all of it is in memory, of its type, and good."""
    parts = [shard.arrays[name] for shard in shards]
    dtype, scaling = np.dtype(port.dtype), shards[0].scaling.get(name)
    kept = None
    if any(shard.good is not None for shard in shards):
        every = [np.ones(len(shard.arrays[name]), bool) if shard.good is None else shard.good for shard in shards]
        kept = np.flatnonzero(np.concatenate(every))
    memory = [part for part in parts if isinstance(part, np.ndarray)]
    if kept is None and scaling is None and len(memory) == len(parts):
        return _join(memory, dtype)
    return Column(tuple(parts), dtype, scaling, kept)


def _cast(array: Array | FileRows, port: Port) -> Array | FileRows:
    if isinstance(array, FileRows):
        return array
    if port.dtype == "int64":
        # Of what does not fit, out of range is said first, by its own value.
        return array if array.dtype.kind == "u" and array.dtype.itemsize == 8 else np.ascontiguousarray(array, np.int64)
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, np.float32)


def _check_shape(where: str, name: str, shape: tuple[int, ...], port: Port, *, empty: bool) -> None:
    if shape and shape[0] == 0 and not empty:
        raise DataError(f"{where}: {name} is empty; remove it, or give the device some examples")
    if shape and shape[1:] == port.shape:
        return
    remedy = "is the bundle meant for this data?"
    if shape and math.prod(shape[1:]) == math.prod(port.shape):
        remedy = f"{name}.reshape({', '.join(map(str, (-1, *port.shape)))}) mends it if the order of values is right"
    wanted = ("n", *port.shape)
    raise DataError(f"{where}: {name} has shape {shape} where {port.name} takes {_shape(wanted)}; {remedy}")


def _check_kind(where: str, name: str, dtype: np.dtype[np.generic], port: Port, scaled: bool) -> None:
    if port.dtype == "int64" and dtype.kind not in "iu":
        raise DataError(f"{where}: {name} is {dtype} where integers are due; convert it, {name}.astype('int64')")
    if port.dtype == "float32" and dtype.kind != "f" and not scaled:
        remedy = f"{name}.astype('float32')" + (" / 255" if dtype == np.uint8 else "")
        raise DataError(f"{where}: {name} is {dtype} where the bundle takes float32; scale it, e.g. {remedy}")


def _good(shard: Shard, arrays: Mapping[str, Array | FileRows], ports: Ports, tally: Tally) -> Array | None:
    length = len(next(iter(arrays.values())))
    finite, labelled = np.ones(length, bool), np.ones(length, bool)
    for name, port in ports.items():
        held = shard.arrays[name] if not isinstance(arrays[name], FileRows) else arrays[name]
        if port.dtype == "int64":
            labelled &= _labelled(shard.where, name, arrays[name], port, tally)
        elif arrays[name].dtype.kind == "f":
            finite &= _finite(
                shard.where, name, arrays[name], np.asarray(held) if held is not arrays[name] else None, tally
            )
    tally.labels += int(np.count_nonzero(~labelled))
    # Each example counts once.
    tally.non_finite += int(np.count_nonzero(labelled & ~finite))
    good = finite & labelled
    return None if good.all() else good


def _finite(where: str, name: str, array: Array | FileRows, original: Array | None, tally: Tally) -> Array:
    good = np.ones(len(array), bool)
    for start, block in _blocks(array):
        with np.errstate(over="ignore"):
            finite = np.isfinite(block.astype(np.float32, copy=False))
        if finite.all():
            continue
        good[start : start + len(block)] = finite.reshape(len(block), -1).all(axis=1)
        row, *inner = _first(~finite)
        at = (start + row, *inner)
        value = block[(row, *inner)] if original is None else original[at]
        tally.say(
            f"{where}: {name}[{_index(at)}] is {value}, not a finite float32; remove such examples or fill them in"
        )
    return good


def _labelled(where: str, name: str, array: Array | FileRows, port: Port, tally: Tally) -> Array:
    good = np.ones(len(array), bool)
    top = np.iinfo(np.int64).max if port.classes is None else port.classes - 1
    lowest, highest = top, -1
    for start, block in _blocks(array):
        wrong = block > top
        if port.classes is not None:
            wrong |= block < 0
            lowest, highest = min(lowest, int(block.min())), max(highest, int(block.max()))
        if wrong.any():
            good[start : start + len(block)] = ~wrong.reshape(len(block), -1).any(axis=1)
            row, *inner = _first(wrong)
            remedy = "number the labels from 0, or export the bundle for more classes"
            said = f"{_index((start + row, *inner))}] is {block[(row, *inner)]}, out of 0 to {top}"
            tally.say(f"{where}: {name}[{said}; {remedy}")
    if port.classes is not None and (lowest, highest) == (1, port.classes):
        # A few left out would hide that all the others mean another class.
        raise DataError(f"{where}: {name} runs from 1 to {highest} where 0 to {top} are due; number the labels from 0")
    return good


def _blocks(array: Array | FileRows) -> Iterator[tuple[int, Array]]:
    for start in range(0, len(array), _BLOCK_ROWS):
        end = min(start + _BLOCK_ROWS, len(array))
        yield start, array[np.arange(start, end)] if isinstance(array, FileRows) else array[start:end]


def _join(parts: list[Array], dtype: np.dtype[np.generic]) -> Array:
    """All parts one after the other. Each is freed once copied, so that the peak is the data and one part."""
    if len(parts) == 1:
        return np.ascontiguousarray(parts[0], dtype)
    parts.reverse()
    result = np.empty((sum(map(len, parts)), *parts[0].shape[1:]), dtype)
    filled = 0
    while parts:
        part = parts.pop()
        result[filled : filled + len(part)] = part
        filled += len(part)
    return result


def _first(mask: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(mask)), mask.shape))


def _index(at: tuple[int, ...]) -> str:
    return ", ".join(map(str, at))


def _shape(shape: tuple[object, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
