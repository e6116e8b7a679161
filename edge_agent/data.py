"""A device's own data: read by the adapter for its kind, checked against the bundle, dealt out in shuffled batches."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_agent.datasets import arrays, csv_files, function, image_files, sqlite_query, wav_files
from edge_agent.datasets.checking import Checked, Tally, check, joined
from edge_agent.datasets.examples import Dataset
from edge_agent.datasets.listing import ARRAYS, DATABASES, PICTURES, SOUNDS, TABLES, Listing, list_files
from edge_agent.datasets.settings import DataSettings, Kind
from edge_agent.datasets.shards import BadFile, Ports, Reader, Shard
from edge_agent.runtimes.engine import Batch
from protocol.errors import DataError
from protocol.manifest import Manifest, Port

__all__ = ["DataSettings", "Dataset", "batches", "load"]

_READERS: dict[Kind, Reader] = {
    "arrays": arrays.read,
    "csv": csv_files.read,
    "wav": wav_files.read,
    "images": image_files.read,
    "sqlite": sqlite_query.read,
}
# By these, in this order, kind = "auto" goes; a table beside sounds or pictures has their labels.
_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "arrays": ARRAYS,
    "wav": SOUNDS,
    "images": PICTURES,
    "csv": TABLES,
    "sqlite": DATABASES,
}


def load(
    settings: DataSettings, manifest: Manifest, base: Path | None = None, listing: Listing | None = None
) -> Dataset:
    """Reads all data, once, and checks it; what is large and on the disk as the model takes it stays there.

    A relative path starts at `base` (the folder of the settings file; the current folder when None), and a source's
    module is also looked for there. listing: the files to read; None for all that are there now.
    Floating point arrays become float32 and integers int64 where the bundle says so; nothing else is converted.
    Examples with a label out of range or a value that is not finite are left out and counted, and so are files that
    cannot be read, up to `most_left_out`. Raises DataError that names the file, the array, the value and the remedy.
    """
    ports = _ports(settings, manifest)
    base = base or Path()
    listing = list_files(settings, base) if listing is None else listing
    tally, shards = Tally(), list[Checked]()
    for found in _read(settings, ports, base, listing):
        if isinstance(found, BadFile):
            tally.bad_file(found)
            continue
        try:
            shards.append(check(found, ports, tally))
        except DataError as error:
            tally.bad_file(BadFile(str(error)))
    _check_enough(settings, listing, tally)
    columns = {name: joined(name, shards, port) for name, port in ports.items()}
    return Dataset(
        tuple(columns[n] for n in settings.inputs), tuple(columns[n] for n in settings.targets), tally.left_out
    )


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


def _read(settings: DataSettings, ports: Ports, base: Path, listing: Listing) -> Iterator[Shard | BadFile]:
    if settings.source is not None:
        return iter([function.call(settings, base)])
    if listing.waiting and not listing.files:
        raise DataError(
            f"{listing.where}: its {listing.waiting} files changed in the last {settings.settle_s:g} s "
            "(data.settle_s); they are taken once they are left alone"
        )
    return _READERS[_kind(settings, listing)](settings, ports, listing)


def _kind(settings: DataSettings, listing: Listing) -> Kind:
    there = {path.suffix.lower() for path in listing.paths}
    if settings.kind == "auto":
        kinds = [kind for kind, suffixes in _SUFFIXES.items() if there & set(suffixes)]
        if len(kinds) > 1 and not (kinds[-1] == "csv" and len(kinds) == 2 and kinds[0] != "arrays"):
            raise DataError(
                f"{listing.where}: files of several kinds ({', '.join(kinds)}); name one in data.kind, or give a glob"
            )
    else:
        kinds = [settings.kind] if there & set(_SUFFIXES[settings.kind]) or _one(listing) else []
    if not kinds:
        wanted = ARRAYS if settings.kind == "auto" else _SUFFIXES[settings.kind]
        raise DataError(f"{listing.where}: no {' or '.join(wanted)} files there; check data.path")
    return kinds[0]


def _one(listing: Listing) -> bool:
    """Whether one file is named, whatever it is called."""
    return len(listing.files) == 1 and str(listing.files[0].path) == listing.where


def _check_enough(settings: DataSettings, listing: Listing, tally: Tally) -> None:
    left_out, files = tally.left_out, max(1, len(listing.files))
    share = max(left_out.examples / max(1, tally.found), left_out.files / files)
    if left_out.count and (share > settings.most_left_out or left_out.examples == tally.found):
        said = f"So are {left_out.examples} of {tally.found} examples and {left_out.files} of {files} files"
        raise DataError(f"{left_out.first[0]}. {said}, over data.most_left_out = {settings.most_left_out}")
    if tally.found == 0:
        raise DataError(f"{listing.where}: no examples there; check data.path")
