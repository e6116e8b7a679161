"""A fleet's model and each device's own head, asked at test time what it was trained for, what it was not, and both.

Each device's data is cut in a part that trains and one that is held out; what it is asked is drawn from the held-out
part, or from elsewhere:

own: as the device's own data is. Of Fashion-MNIST the test images, mixed by label as the device's are; of HAPT the last
windows of each activity of the same person (windows overlap, so that a random cut would ask what was trained on).
elsewhere: Fashion-MNIST's test images, all labels alike; of HAPT other people, on whom nobody trained.
mixed: half of each, in one order, as the device might be carried about.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.algorithm_rows import Problem
from edge_agent.data import Dataset
from edge_agent.personal.head import Head, HeadRecipe
from edge_agent.personal.mixture import Means, MixRule, mixed
from edge_agent.personal.study import drawn, studied
from edge_agent.runtimes.engine import Array, Batch, Vector
from edge_agent.runtimes.features import Extractor, open_extractor

KINDS = ("own", "elsewhere", "mixed")
# Of each device and kind so many are asked at the most.
_ASKED = 400
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Asked:
    """What a device is asked, by kind: examples with their labels, which only the measuring sees."""

    train: Dataset
    tests: Mapping[str, Dataset]


@dataclass(frozen=True, slots=True)
class Answers:
    """Of one device: scores of the fleet's head and its own, features and labels, by kind; and its means."""

    fleet: Head
    own: Head
    means: Means
    features: Mapping[str, Vector]
    labels: Mapping[str, Array]


def split_by_activity(data: Dataset, *, validate: bool) -> tuple[Dataset, Dataset]:
    """What a person trains on and what is asked of it: of each activity the first four fifths and the last. validate:
    the first three fifths and the fourth, so that nobody sees the last."""
    y = np.asarray(data.targets[0])
    train, asked = [], []
    for label in np.unique(y):
        places = np.flatnonzero(y == label)
        n = len(places)
        first, last = (3 * n // 5, 4 * n // 5) if validate else (4 * n // 5, n)
        train.append(places[:first])
        asked.append(places[first:last])
    return tuple(part(data, np.sort(np.concatenate(some))) for some in (train, asked))  # type: ignore[return-value]


def part(data: Dataset, places: Array) -> Dataset:
    return Dataset(
        tuple(np.asarray(a[places]) for a in data.inputs), tuple(np.asarray(a[places]) for a in data.targets)
    )


def joined(one: Dataset, other: Dataset, rng: np.random.Generator) -> Dataset:
    """As many of each, in a drawn order."""
    n = min(len(one), len(other))
    chosen = [part(data, rng.permutation(len(data))[:n]) for data in (one, other)]
    order = rng.permutation(2 * n)
    inputs, targets = (
        tuple(np.concatenate(pair)[order] for pair in zip(*(getattr(c, side) for c in chosen), strict=True))
        for side in ("inputs", "targets")
    )
    return Dataset(inputs, targets)


def asked_of(problem: Problem, seed: int, *, validate: bool) -> tuple[Problem, list[Asked]]:
    """What each device trains on and is asked, and the problem with that training data."""
    rng, fleet, found = np.random.default_rng(seed), dict[str, Dataset](), list[Asked]()
    for place, (name, data) in enumerate(problem.fleet.items()):
        n = len(problem.held_out)
        elsewhere = part(problem.held_out, rng.permutation(n)[:_ASKED])
        if problem.split == "person":
            train, own = split_by_activity(data, validate=validate)
            own = part(own, rng.permutation(len(own))[:_ASKED])
        else:
            train, own = data, part(problem.held_out, rng.choice(n, _ASKED, p=problem.shares[place]))
        fleet[name] = train
        found.append(Asked(train, {"own": own, "elsewhere": elsewhere, "mixed": joined(own, elsewhere, rng)}))
    return replace(problem, fleet=fleet), found


def answers(problem: Problem, model: Vector, asked: Sequence[Asked], recipe: HeadRecipe, most: int) -> list[Answers]:
    """Every device's head of a model, float32[total], and what is needed to answer by it."""
    extractor = open_extractor(problem.bundle)
    found = []
    for one in asked:
        study = studied(extractor, model, one.train, None, recipe, most)
        features = {kind: _features(extractor, model, test) for kind, test in one.tests.items()}
        labels = {kind: np.asarray(test.targets[0]) for kind, test in one.tests.items()}
        found.append(Answers(study.fleet, study.head, study.means, features, labels))
    return found


def accuracies(devices: Sequence[Answers], kind: str, rule: MixRule) -> dict[str, list[float]]:
    """Of each way to answer, the accuracy of each device. The fleet's mean is told in one of them, as in the paper: the
    mean of all devices' own."""
    told = np.mean([one.means.own for one in devices], axis=0).astype(np.float32)
    found: dict[str, list[float]] = {}
    for one in devices:
        features, labels = one.features[kind], one.labels[kind]
        fleet, own = one.fleet.scores(features), one.own.scores(features)
        by: dict[str, Array] = {
            "fleet's head": fleet,
            "personal head": own,
            "both heads, half each": (fleet + own) / 2,
            "FedTHE mix": mixed(fleet, own, features, one.means, rule).scores,
            "FedTHE mix, means told": mixed(fleet, own, features, replace(one.means, fleet=told), rule).scores,
        }
        for name, scores in by.items():
            found.setdefault(name, []).append(float(np.mean(scores.argmax(axis=1) == labels)))
    return found


def _features(extractor: Extractor, model: Vector, data: Dataset) -> Vector:
    rows = drawn(len(data), len(data), 0)
    some = []
    for start in range(0, len(rows), _BATCH):
        batch = part(data, rows[start : start + _BATCH])
        some.append(extractor.read(model, Batch(batch.inputs, batch.targets)))
    return np.concatenate(some)
