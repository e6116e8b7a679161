"""What a device holds out of its own data, and how the round's model does on it, before it is trained on.

Whether an example is held out follows from its place and a seed alone, so that data to which more is added at its end
keeps what was held out, and nothing that was ever held out is trained on.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.data import Dataset, DataSettings, load
from edge_agent.datasets.examples import Column
from edge_agent.runtimes.engine import Array, Batch, Evaluation
from protocol.manifest import Manifest
from protocol.messages import HeldOut

log = logging.getLogger("edge-agent")

# Of one evaluation: bounds memory, not what comes of it.
_BATCH = 64
_GOLDEN = 0x9E3779B97F4A7C15


def divided(dataset: Dataset, settings: DataSettings, manifest: Manifest, base: Path) -> tuple[Dataset, Dataset | None]:
    """What is trained on, and what is held out, None where there is nothing of it."""
    if settings.hold_out_path is not None:
        named = replace(settings, path=settings.hold_out_path, source=None, hold_out=0.0, hold_out_path=None)
        return dataset, load(named, manifest, base)
    held = held_places(len(dataset), settings.hold_out, settings.hold_out_seed)
    if not held.any() or held.all():
        return dataset, None
    return _part(dataset, np.flatnonzero(~held)), _part(dataset, np.flatnonzero(held))


def held_places(n: int, fraction: float, seed: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """bool[n]: which examples are held out. SplitMix64 of their places (Steele, Lea, Flood 2014), below `fraction`."""
    with np.errstate(over="ignore"):
        z = (np.arange(1, n + 1, dtype=np.uint64) + np.uint64(seed)) * np.uint64(_GOLDEN)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((z ^ (z >> np.uint64(31))) >> np.uint64(11)) < fraction * 2.0**53


def measured(evaluate: Callable[[Batch], Evaluation], dataset: Dataset) -> HeldOut | None:
    """Loss and accuracy over all of the dataset; None where the loss is no number, which is nothing to tell: the
    coordinator would refuse the update for it."""
    loss, accuracy, known = 0.0, 0.0, True
    for start in range(0, len(dataset), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(dataset)))
        found = evaluate(Batch(tuple(a[rows] for a in dataset.inputs), tuple(a[rows] for a in dataset.targets)))
        loss += found.loss * len(rows)
        right = found.metrics.get("accuracy", found.metrics.get("binary_accuracy"))
        known = known and right is not None
        accuracy += (right or 0.0) * len(rows)
    n = len(dataset)
    if not math.isfinite(loss):
        log.warning("held out examples=%d: the model's loss on them is %s, and is not told", n, loss)
        return None
    log.info("held out examples=%d loss=%.4f accuracy=%s", n, loss / n, accuracy / n if known else None)
    return HeldOut(n, loss / n, min(1.0, accuracy / n) if known else None)


def _part(dataset: Dataset, places: Array) -> Dataset:
    inputs, targets = (tuple(_rows(values, places) for values in part) for part in (dataset.inputs, dataset.targets))
    return replace(dataset, inputs=inputs, targets=targets)


def _rows(values: Any, places: Array) -> Any:
    if isinstance(values, Column):
        return replace(values, kept=places if values.kept is None else values.kept[places])
    return values[places]
