"""A personal head from a model and a device's data: trained on what it trains on, tried on what it holds out."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from edge_agent.data import Dataset
from edge_agent.personal.head import Head, HeadRecipe, trained
from edge_agent.personal.mixture import Means, MixRule, fleet_mean, mixed
from edge_agent.personal.shelf import Figures
from edge_agent.runtimes.engine import Array, Batch, Vector
from edge_agent.runtimes.features import Extractor, Place
from protocol.errors import ConfigurationError

RULE = MixRule()
# Of one reading of features: bounds memory, not what comes of it.
_BATCH = 64
# Of all features that are held at once.
_MOST_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Study:
    """What was found: both heads and means, on how many examples, and how they do. figures: None where nothing is held
    out."""

    head: Head
    fleet: Head
    means: Means
    trained_on: int
    figures: Figures | None


def studied(
    extractor: Extractor, model: Vector, dataset: Dataset, held_out: Dataset | None, recipe: HeadRecipe, most: int
) -> Study:
    """Trains a head for `model`, float32[total], on at most so many of the examples. Pure: the same arguments give the
    same bits. Raises ConfigurationError where the features would not fit, or the data does."""
    place = extractor.place
    rows = drawn(len(dataset), most, recipe.seed)
    if 4 * len(rows) * place.features > _MOST_BYTES:
        fit = _MOST_BYTES // (4 * place.features)
        raise ConfigurationError(
            f"personal.most_examples: {len(rows)} examples of {place.features} features take more than "
            f"{_MOST_BYTES >> 20} MiB; set at most {fit}"
        )
    features, labels = _read(extractor, model, dataset, rows)
    fleet = head_in(model, place)
    head = trained(fleet, features, labels, recipe)
    means = Means(features.mean(axis=0, dtype=np.float64).astype(np.float32), fleet_mean(features, labels, fleet))
    figures = None if held_out is None else _tried(extractor, model, held_out, fleet, head, means)
    return Study(head, fleet, means, len(rows), figures)


def head_in(model: Vector, place: Place) -> Head:
    """The head of a model, float32[total]."""
    weight, bias = (model[t.offset : t.offset + t.size].reshape(t.shape) for t in (place.weight, place.bias))
    return Head(weight.copy(), bias.copy())


def with_head(model: Vector, place: Place, head: Head) -> Vector:
    """float32[total]: the model with another head."""
    model = model.copy()
    for tensor, values in ((place.weight, head.weight), (place.bias, head.bias)):
        model[tensor.offset : tensor.offset + tensor.size] = values.ravel()
    return model


def drawn(n: int, most: int, seed: int) -> Array:
    """int64[min(n, most)]: which examples, in their order."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).permutation(n)[:most])


def _read(extractor: Extractor, model: Vector, dataset: Dataset, rows: Array) -> tuple[Vector, Array]:
    """float32[n, features] and int64[n] of these examples."""
    features = np.empty((len(rows), extractor.place.features), np.float32)
    labels = np.empty(len(rows), np.int64)
    for start, found, y in _batches(extractor, model, dataset, rows):
        features[start : start + len(y)], labels[start : start + len(y)] = found, y
    return features, labels


def _batches(extractor: Extractor, model: Vector, dataset: Dataset, rows: Array) -> Iterator[tuple[int, Vector, Array]]:
    for start in range(0, len(rows), _BATCH):
        some = rows[start : start + _BATCH]
        batch = Batch(tuple(a[some] for a in dataset.inputs), tuple(a[some] for a in dataset.targets))
        yield start, extractor.read(model, batch), np.asarray(batch.targets[0], np.int64)


def _tried(extractor: Extractor, model: Vector, held_out: Dataset, fleet: Head, head: Head, means: Means) -> Figures:
    """The mix sees the examples in their order, a batch at a time, as an application would ask."""
    right, share, history = np.zeros(3), 0.0, None
    for _, features, labels in _batches(extractor, model, held_out, np.arange(len(held_out))):
        both = fleet.scores(features), head.scores(features)
        mix = mixed(*both, features, means, RULE, history)
        history = mix.history
        share += float(mix.share.sum())
        right += [np.count_nonzero(scores.argmax(axis=1) == labels) for scores in (*both, mix.scores)]
    n = len(held_out)
    by_fleet, by_head, by_both = (right / n).tolist()
    return Figures(n, by_fleet, by_head, by_both, share / n)
