"""`fleet-coordinator replay`: what replay.py finds, told to people or as JSON, and written as a model to deploy."""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress

from coordinator import settings as coordinator_settings
from coordinator.deployment import compressed, inference_file
from coordinator.evaluate import accuracy_of
from coordinator.history import History, open_history
from coordinator.masking import deployed
from coordinator.process import open_examination
from coordinator.replay import Replayed, Without, replay, replay_without
from coordinator.settings import Settings
from coordinator.structure import Structure
from edge_agent.runtimes.engine import Vector
from protocol.bundle import Bundle, open_bundle
from protocol.disk import write_durably
from protocol.errors import ConfigurationError, NothingToDoError
from protocol.records import write_record

T = TypeVar("T")


def run(options: argparse.Namespace) -> int:
    """Replays the run: 0 where every bit is the same, 1 where one is not. Raises NothingToDoError where nothing is left
    to replay."""
    if options.out is not None and options.without is None:
        raise ConfigurationError("--out: writes the model that --without makes; name a device, or use export-model")
    settings = coordinator_settings.load(options.config)
    bundle = open_bundle(Path(settings.bundle))
    with closing(open_history(Path(settings.state))) as history:
        if options.run is not None and options.run != history.run:
            raise ConfigurationError(f"--run: the run in {settings.state} is {history.run}, not {options.run}")
        history.belongs_to(bundle.digest, settings.bundle)
        if options.without is not None:
            return _without(options, history, settings, bundle)
        return _replay(options, history, settings, bundle)


def _replay(options: argparse.Namespace, history: History, settings: Settings, bundle: Bundle) -> int:
    rows = list(_watched(replay(history, bundle.manifest, settings), history.newest))
    done = [row for row in rows if row.why_not is None]
    different = [row for row in done if row.difference is not None]
    if options.json:
        first = different[0] if different else None
        _print_json(
            {
                "run": history.run,
                "versions": history.newest,
                "replayed": len(done),
                "same": len(done) - len(different),
                "first_difference": None if first is None else write_record(first),
                "not_replayed": [{"version": row.version, "why": row.why_not} for row in rows if row.why_not],
            }
        )
    else:
        _tell(history, rows, done, different)
    if not done:
        raise NothingToDoError(f"run {history.run}: none of its {history.newest} versions can be replayed")
    return 1 if different else 0


def _tell(history: History, rows: list[Replayed], done: list[Replayed], different: list[Replayed]) -> None:
    for versions, why in _grouped(rows):
        print(f"version {versions}: not replayed: {why}")
    for row in different[:1]:
        found = row.difference
        assert found is not None
        place = f"{found.tensor}{list(found.index)}"
        print(
            f"version {row.version}: {place} is {found.stored!r} (0x{found.stored_bits}) in the store and "
            f"{found.folded!r} (0x{found.folded_bits}) folded again; {found.differing} values of this version differ. "
            "Were [server] settings changed since, or sparsefleet or numpy, or the store?"
        )
    print(
        f"run {history.run}: {len(done)} of {history.newest} versions folded again from their payloads, "
        f"{len(done) - len(different)} with every bit the same"
    )


def _grouped(rows: Iterable[Replayed]) -> Iterator[tuple[str, str]]:
    """Neighbours that lack the same, in one line."""
    first: Replayed | None = None
    last = first
    for row in (*rows, None):
        if first is not None and last is not None and (row is None or row.why_not != first.why_not):
            said = f"{first.version}" if first is last else f"{first.version} to {last.version}"
            if first.why_not is not None:
                yield said, first.why_not
            first = row
        first, last = first or row, row


def _without(options: argparse.Namespace, history: History, settings: Settings, bundle: Bundle) -> int:
    device = options.without
    if not history.has_device(device):
        raise ConfigurationError(f"--without: no update of {device!r} is known in run {history.run}; see: devices")
    made: list[tuple[Vector, Structure]] = []

    def keep(dense: Vector, structure: Structure) -> None:
        made[:] = [(dense, structure)]

    rows = list(_watched(replay_without(history, bundle.manifest, settings, device, keep), history.newest))
    if not rows:
        raise NothingToDoError(f"run {history.run}: no version of it can be made without {device}")
    real = history.dense(history.newest)
    assert real is not None
    dense, structure = made[0]
    accuracy = _accuracies(settings, bundle, [deployed(model, structure) for model in (real, dense)])
    if options.out is not None:
        data = inference_file(bundle, deployed(dense, structure))
        _write(options.out, compressed(data) if options.out.suffix == ".gz" else data)
    said: dict[str, Any] = {
        "run": history.run,
        "without": device,
        "from_version": rows[0].version - 1,
        "accuracy": accuracy[0],
        "accuracy_without": accuracy[1],
        "versions": [write_record(row) for row in rows],
        "out": None if options.out is None else str(options.out),
    }
    if options.json:
        _print_json(said)
    else:
        _tell_without(said, rows)
    return 0


def _tell_without(said: dict[str, Any], rows: list[Without]) -> None:
    for row in rows:
        share = row.distance / row.moved if row.moved else math.nan
        print(
            f"version {row.version}: {row.left_out} of {row.updates + row.left_out} updates left out, "
            f"distance {row.distance:.4g}, {share:.2%} of the way from version {said['from_version']}"
        )
    if said["accuracy"] is not None:
        print(f"accuracy {said['accuracy']:.4f}, without {said['without']} {said['accuracy_without']:.4f}")
    if said["out"] is not None:
        print(f"wrote {said['out']}")


def _accuracies(settings: Settings, bundle: Bundle, models: list[Vector]) -> list[float | None]:
    examine = open_examination(settings, bundle)
    return [None if examine is None else accuracy_of(examine(model).metrics) for model in models]


def _watched(rows: Iterator[T], total: int) -> Iterator[T]:
    with Progress(console=Console(stderr=True), transient=True) as progress:
        job = progress.add_task("folding again", total=total)
        for row in rows:
            progress.advance(job)
            yield row


def _write(path: Path, data: bytes) -> None:
    try:
        write_durably(path, data)
    except OSError as error:
        raise ConfigurationError(f"--out: {path} cannot be written ({error.strerror})") from None


def _print_json(value: object) -> None:
    json.dump(value, sys.stdout)
    print(flush=True)
