"""What a comparison of algorithms is made of: the row, and the problem that all algorithms on a split share."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from tempfile import mkdtemp

import numpy as np
import torch
from torch import nn

from devices.datasets import Dataset as Labelled
from devices.datasets import Ints, load_dataset
from devices.partition import by_group, by_label_skew
from edge_agent.data import Dataset
from edge_agent.runtimes.engine import Array, Batch, Vector
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.portable import PortableEngine
from export import TrainingSpec
from export.bundle import write_bundle
from export.layout import flat_model
from protocol.bundle import Bundle, open_bundle
from protocol.manifest import FULL, Manifest

# Of one evaluation: bounds memory, not what comes of it.
_BATCH = 512


@dataclass(frozen=True, slots=True)
class Row:
    """One algorithm on one split.

    bytes: that a device sends and receives in the whole run, as its messages have them, mean of all devices.
    accuracy_mean, accuracy_sd: of the averaged model, on what is held out of the data set, over seeds.
    accuracy_worst_device: the lowest of any device; in hub mode of the one model on each device's own mix of labels (or
    on each held-out person), in gossip of each device's own model on all that is held out. The mean over seeds.
    own_mean: in gossip the mean accuracy of devices' own models, which is a third figure, and not in the rows that are
    published but in a note below them.
    Of the part `head` both are over devices, each on what it is asked (benchmarks/head_fleet.py).
    """

    dataset: str
    split: str
    topology: str
    algorithm: str
    codec: str
    rounds: int
    bytes: int
    accuracy_mean: float
    accuracy_sd: float
    accuracy_worst_device: float
    own_mean: float | None = None

    def published(self) -> dict[str, str | int | float]:
        """The keys that every row has."""
        return {key: value for key, value in asdict(self).items() if key != "own_mean"}


# What each part of the comparison provides: rows of a data set, for seeds, quickly or not. The frame asks for one seed
# at a time, so that a run can be broken off and go on.
Rows = Callable[[str, Sequence[int], bool], Iterator[Row]]


def over_seeds(rows: Sequence[Row]) -> list[Row]:
    """One row for each algorithm and split, of rows of one seed each, in the order of their first."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.dataset, row.split, row.topology, row.algorithm, row.codec), []).append(row)
    return [_merged(group) for group in groups.values()]


def _merged(rows: Sequence[Row]) -> Row:
    accuracies = [row.accuracy_mean for row in rows]
    own = [row.own_mean for row in rows if row.own_mean is not None]
    return replace(
        rows[0],
        rounds=round(mean(row.rounds for row in rows)),
        bytes=round(mean(row.bytes for row in rows)),
        accuracy_mean=round(mean(accuracies), 4),
        accuracy_sd=round(stdev(accuracies), 4) if len(rows) > 1 else 0.0,
        accuracy_worst_device=round(mean(row.accuracy_worst_device for row in rows), 4),
        own_mean=round(mean(own), 4) if own else None,
    )


def _hapt_network() -> nn.Module:
    """Without norms, whose statistics are a matter of their own under uneven data."""
    layers: list[nn.Module] = []
    for into, out, size in ((6, 16, 9), (16, 24, 5), (24, 32, 5)):
        layers += [nn.Conv1d(into, out, size, stride=2, padding=size // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, 6))


def _fashion_network() -> nn.Module:
    layers: list[nn.Module] = []
    for into, out, size in ((1, 8, 5), (8, 16, 3)):
        layers += [nn.Conv2d(into, out, size, stride=2, padding=size // 2), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 7 * 7, 32), nn.ReLU(), nn.Linear(32, 10))


def _fsdd_network() -> nn.Module:
    layers: list[nn.Module] = []
    for into, out in ((1, 8), (8, 16), (16, 24)):
        layers += [nn.Conv2d(into, out, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(10))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "hapt": _hapt_network,
    "fashion": _fashion_network,
    "fsdd": _fsdd_network,
}
# Devices of each data set: people, speakers; of Fashion-MNIST as many as the rings of the papers have.
DEVICES: Mapping[str, int] = {"hapt": 21, "fashion": 16, "fsdd": 6}
SPLITS: Mapping[str, tuple[str, ...]] = {
    "hapt": ("person",),
    "fashion": ("dirichlet 1.0", "dirichlet 0.1"),
    "fsdd": ("speaker",),
}


@dataclass(frozen=True)
class Problem:
    """A data set split over devices, with a network. fleet: data by device. held_out: what accuracy is measured on.

    shares: float64[devices, held out], each row summing to 1: how a device would weigh what is held out.
    """

    dataset: str
    split: str
    bundle: Bundle
    fleet: Mapping[str, Dataset]
    held_out: Dataset
    shares: Array
    initial: Vector

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @cached_property
    def engine(self) -> PortableEngine:
        return PortableEngine(self.bundle, FULL)

    def right(self, model: Vector) -> Array:
        """Which held-out examples a model, float32[total], tells right: float64[held out] of 0 and 1."""
        (x,), (y,) = self.held_out.inputs, self.held_out.targets
        found = []
        for start in range(0, len(y), _BATCH):
            batch = Batch((np.asarray(x[start : start + _BATCH]),), (np.asarray(y[start : start + _BATCH]),))
            scores = self._evaluator.outputs(model, batch)[1]
            found.append(scores.argmax(axis=1) == batch.targets[0])
        return np.concatenate(found).astype(np.float64)

    def accuracy(self, model: Vector) -> float:
        """Of a model, float32[total], on all that is held out."""
        return float(self.right(model).mean())

    def worst_device(self, model: Vector) -> float:
        """Of one model for all: the accuracy on the mix of the device that it serves worst."""
        return float((self.shares @ self.right(model)).min())

    @cached_property
    def _evaluator(self) -> Evaluator:
        return Evaluator(self.bundle, self.manifest.variant(FULL).backends["portable"].files["eval"])


def problem(
    dataset: str, split: str, seed: int, *, validate: bool = False, quick: bool = False, devices: int | None = None
) -> Problem:
    """The problem of a seed, which varies the split (where it is drawn), and the beginning.

    validate: measured on a part of the training people or examples, which nobody then trains on: what settings are
    chosen by. quick: few examples, to see that all runs. devices: of a split that is drawn; default `DEVICES`.
    """
    data = load_dataset(dataset)
    train, measured = _parts(data, validate=validate)
    if quick:
        train, measured = train[::20] if data.group is None else train[::4], measured[::10]
    shares, weights = _dealt(data, split, train, measured, seed, devices or DEVICES[dataset])
    bundle = _bundle(dataset, data)
    torch.manual_seed(seed)
    return Problem(
        dataset,
        split,
        bundle,
        {f"device-{i:02d}": examples(data, share) for i, share in enumerate(shares)},
        examples(data, measured),
        weights,
        flat_model(_network(dataset, data), bundle.manifest.tensors),
    )


def examples(data: Labelled, places: Ints) -> Dataset:
    return Dataset((data.x[places],), (data.y[places],))


def _parts(data: Labelled, *, validate: bool) -> tuple[Ints, Ints]:
    train, measured = data.train_indices, data.test_indices
    if not validate:
        return train, measured
    # Every fourth person where there are many, else every sixth example.
    if data.group is not None and len(people := np.unique(data.group[train])) > 8:
        held = np.isin(data.group[train], people[::4])
    else:
        held = np.arange(len(train)) % 6 == 5
    return train[~held], train[held]


def _dealt(
    data: Labelled, split: str, train: Ints, measured: Ints, seed: int, devices: int
) -> tuple[list[Ints], Array]:
    kind, _, alpha = split.partition(" ")
    if kind == "dirichlet":
        shares = by_label_skew(data.y[train], devices, float(alpha), np.random.default_rng(seed))
        weights = np.stack([_as_labelled(data.y[train[s]], data.y[measured], data.classes) for s in shares])
        return [train[s] for s in shares], weights
    assert data.group is not None, f"{data.name} has no natural clients"
    dealt = by_group(data.group[train], len(np.unique(data.group[train])))
    own = data.group[measured]
    weights = np.stack([(own == one) / np.count_nonzero(own == one) for one in np.unique(own)])
    return [train[s] for s in dealt], weights


def _as_labelled(own: Ints, held: Ints, classes: int) -> Array:
    """How much each held-out example weighs for a device with labels `own`: as its labels are mixed."""
    mix = np.bincount(own, minlength=classes) / np.maximum(1, np.bincount(held, minlength=classes))
    weights = mix[held]
    return np.asarray(weights / weights.sum())


def _network(dataset: str, data: Labelled) -> nn.Module:
    network = NETWORKS[dataset]()
    with torch.no_grad():
        # Fills in what is left to the first input's shape.
        network(torch.zeros(2, *data.shape))
    return network


_BUNDLES: dict[str, Bundle] = {}


def _bundle(dataset: str, data: Labelled) -> Bundle:
    """The network exported, with parity, once a process."""
    if dataset not in _BUNDLES:
        torch.manual_seed(0)
        folder = Path(mkdtemp(prefix="algorithms-")) / "bundle"
        inputs, targets = torch.randn(8, *data.shape), torch.randint(0, data.classes, (8,))
        spec = TrainingSpec(_network(dataset, data), inputs, targets, "cross_entropy", ("accuracy",))
        write_bundle(spec, folder, line=f"algorithms-{dataset}", backends=("portable",))
        _BUNDLES[dataset] = open_bundle(folder)
    return _BUNDLES[dataset]
