"""How good a model version is: loss and metrics on held-out data, which is checked once against the manifest."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from edge_agent.runtimes.engine import Array, Batch, Evaluation, Vector
from protocol.errors import DataError
from protocol.manifest import Manifest, Port

Examine = Callable[[Vector], Evaluation]


class Evaluator(Protocol):
    """One evaluation-mode pass over a batch. model: float32[total]."""

    def evaluate(self, model: Vector, batch: Batch) -> Evaluation: ...


def examiner(evaluator: Evaluator, data: Batch, batch_size: int) -> Examine:
    """Evaluates models on all of `data`."""
    return lambda model: evaluate(lambda batch: evaluator.evaluate(model, batch), data, batch_size)


def evaluate(measure: Callable[[Batch], Evaluation], data: Batch, batch_size: int) -> Evaluation:
    """Means over all of `data`, measured batch by batch."""
    loss, metrics, examples = 0.0, dict[str, float](), 0
    for start in range(0, len(data), batch_size):
        batch = Batch(
            tuple(a[start : start + batch_size] for a in data.inputs),
            tuple(a[start : start + batch_size] for a in data.targets),
        )
        found = measure(batch)
        loss += found.loss * found.examples
        for name, value in found.metrics.items():
            metrics[name] = metrics.get(name, 0.0) + value * found.examples
        examples += found.examples
    return Evaluation(loss / examples, {name: total / examples for name, total in metrics.items()}, examples)


def accuracy_of(metrics: Mapping[str, float]) -> float | None:
    """The accuracy among a model's metrics, if it has one."""
    return metrics.get("accuracy", metrics.get("binary_accuracy"))


def load_data(path: Path, manifest: Manifest, key: str = "evaluation.data") -> Batch:
    """Held-out examples from an .npz file with one array for each input and target of the manifest, by name.

    A bundle of one input and one target may also have them as x and y. key: of the setting, for errors. Raises
    DataError.
    """
    inputs = len(manifest.inputs)
    arrays = _load(path, (*manifest.inputs, *manifest.targets), key)
    return Batch(arrays[:inputs], arrays[inputs:])


def load_inputs(path: Path, manifest: Manifest, key: str) -> tuple[Array, ...]:
    """The same without targets: an array for each input of the manifest."""
    return _load(path, manifest.inputs, key)


def _load(path: Path, ports: tuple[Port, ...], key: str) -> tuple[Array, ...]:
    if path.exists() and not zipfile.is_zipfile(path):
        raise DataError(f"{key}: {path} is not an .npz file; save it with numpy.savez")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = _names(path, ports, tuple(file.files), key)
            arrays = {port: file[name] for port, name in names.items()}
    except OSError as error:
        raise DataError(f"{key}: {path} cannot be read ({error.strerror or error})") from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{key}: {path} is not a readable .npz file ({error})") from None
    checked = tuple(_checked(path, port, arrays[port.name], key) for port in ports)
    if len({len(a) for a in checked}) != 1:
        said = ", ".join(f"{port.name} {len(a)}" for port, a in zip(ports, checked, strict=True))
        raise DataError(f"{key}: {path} has different numbers of examples ({said})")
    return checked


def _names(path: Path, ports: tuple[Port, ...], found: tuple[str, ...], key: str) -> dict[str, str]:
    names = [port.name for port in ports]
    short = ("x", "y")[: len(names)]
    if all(name in found for name in names):
        return {name: name for name in names}
    if len(short) == len(names) and set(short) <= set(found):
        return dict(zip(names, short, strict=True))
    raise DataError(f"{key}: {path} holds {', '.join(found) or 'nothing'} where {', '.join(names)} are needed")


def _checked(path: Path, port: Port, array: Array, key: str) -> Array:
    where = f"{key}: {path}, {port.name}"
    if array.ndim == 0 or array.shape[1:] != port.shape:
        raise DataError(f"{where}: shape {array.shape} where (examples, {', '.join(map(str, port.shape))}) is needed")
    if len(array) == 0:
        raise DataError(f"{where}: no examples; give at least one")
    kinds = "iub" if port.dtype == "int64" else "fiub"
    if array.dtype.kind not in kinds:
        raise DataError(f"{where}: type {array.dtype} cannot be taken as {port.dtype}; convert it first")
    array = np.ascontiguousarray(array, dtype=port.dtype)
    if port.dtype == "float32" and not np.isfinite(array).all():
        raise DataError(f"{where}: holds NaN or infinity; clean the data first")
    if port.classes is not None and not (array.min() >= 0 and array.max() < port.classes):
        raise DataError(f"{where}: values from {array.min()} to {array.max()}, must be from 0 to {port.classes - 1}")
    return array
