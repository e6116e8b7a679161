"""A training run in one file, from which it goes on bit for bit: a safetensors file with a checksum, written at once.

Tensors: `model` F32[total], dense; `moment.first`, `moment.second` and `anchor` F32; `mask` U8, bits as in
sparse/masks.py; `losses` and `gradients` I64, the bits of float64. Its texts say which run it is of, where that run is,
and the SHA-256 of all else. Nothing in it is code.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.data import Dataset
from edge_agent.runtimes import safetensors
from edge_agent.runtimes.engine import Array
from edge_agent.runtimes.optimizers import OptimizerState
from edge_agent.runtimes.safetensors import TensorFile
from edge_agent.training import Recipe, TrainingState
from protocol.bundle import Bundle
from protocol.disk import LOCAL, Disk, disk_named, write_durably
from protocol.errors import BundleError, ConfigurationError
from protocol.records import read_record, write_record
from sparse.dynamic import SparseState
from sparse.masks import pack_mask, unpack_mask

FORMAT = "1"
# Not compared: a run may be asked for more steps than it was begun with.
_FREE = {"recipe.steps"}


@dataclass(frozen=True, slots=True)
class Run:
    """What a checkpoint is of, by what an operator calls it: each thing that, were it another, would change bits."""

    facts: Mapping[str, Any]


class CheckpointError(ConfigurationError):
    """A checkpoint is altered, or of another run."""


def run_of(bundle: Bundle, variant: str, backend: str, dataset: Dataset, recipe: Recipe) -> Run:
    """The identity of a run. NumPy's release is part of it: it promises the same draws within one alone."""
    recipe_facts = _flat("recipe", write_record(recipe))
    facts = {"bundle": bundle.digest.hex(), "variant": variant, "backend": backend, "data": _digest(dataset)}
    return Run({**facts, **recipe_facts, "numpy": np.__version__})


def save(path: Path, run: Run, state: TrainingState, disk: Disk = LOCAL) -> None:
    """Writes the state so that the path holds, at every moment, either the last whole checkpoint or this one."""
    arrays: dict[str, Array] = {
        "model": state.model,
        "losses": np.array(state.losses, np.float64).view(np.int64),
        "gradients": state.gradients.view(np.int64),
    }
    moments = {"moment.first": state.optimizer.first_moment, "moment.second": state.optimizer.second_moment}
    arrays |= {name: moment for name, moment in moments.items() if len(moment)}
    if state.anchor is not None:
        arrays["anchor"] = state.anchor
    if state.sparse is not None:
        arrays["mask"] = np.frombuffer(pack_mask(state.sparse.mask), np.uint8)
    place = _Place(
        state.done, state.optimizer.steps, state.seconds, None if state.sparse is None else state.sparse.steps
    )
    text = {
        "format": FORMAT,
        "run": json.dumps(dict(run.facts), sort_keys=True),
        "place": json.dumps(write_record(place)),
    }
    data = safetensors.format_tensors(arrays, {**text, "sha256": _checksum(arrays, text)})
    with disk_named(path.parent):
        write_durably(path, data, disk)


def load(path: Path, run: Run, total: int, parameters: int, disk: Disk = LOCAL) -> TrainingState:
    """The state in the file, of a model of `total` values of which `parameters` are trained.

    Raises CheckpointError if the file is altered, or of another run, by the name and value of what differs.
    """
    try:
        file = safetensors.parse(str(path), disk.read(path))
        return _read(file, run, total, parameters)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (BundleError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: is no whole checkpoint ({error}); remove it to begin anew") from None


@dataclass(frozen=True, slots=True)
class _Place:
    """How far a run is, in steps; `sparse` where it has a rule."""

    done: int
    optimizer: int
    seconds: float
    sparse: int | None = None


def _read(file: TensorFile, run: Run, total: int, parameters: int) -> TrainingState:
    text = {name: str(file.text.get(name, "")) for name in ("format", "run", "place")}
    if text["format"] != FORMAT:
        raise ValueError(f"its format is {text['format'] or 'not said'!r}, this version reads {FORMAT!r}")
    found = {name: file.array(name, ("F32", "I64", "U8")) for name in file.header if name != "__metadata__"}
    if file.text.get("sha256") != _checksum(found, text):
        raise ValueError("its SHA-256 differs")
    _check_same(file.name, run, json.loads(text["run"]))
    place = read_record(_Place, json.loads(text["place"]))
    none = np.zeros(0, np.float32)
    moments = found.get("moment.first", none), found.get("moment.second", none)
    if len(found["model"]) != total or any(len(v) not in (0, parameters) for v in (*moments, found["gradients"])):
        raise ValueError(f"it is not of {total} values, {parameters} of them trained")
    sparse = None
    if place.sparse is not None:
        sparse = SparseState(place.sparse, unpack_mask(found["mask"].tobytes(), parameters))
    return TrainingState(
        done=place.done,
        model=found["model"],
        optimizer=OptimizerState(place.optimizer, *moments),
        anchor=found.get("anchor"),
        sparse=sparse,
        losses=tuple(found["losses"].view(np.float64).tolist()),
        seconds=place.seconds,
        gradients=found["gradients"].view(np.float64),
    )


def _check_same(name: str, run: Run, written: Mapping[str, Any]) -> None:
    for key in sorted({*run.facts, *written} - _FREE):
        has, due = written.get(key), run.facts.get(key)
        if has != due:
            raise CheckpointError(
                f"{name}: is of another run: {key} is {_said(has)} there and {_said(due)} here; "
                "give the same, or another file"
            )


def _said(value: object) -> str:
    # Digests are told apart by their first digits.
    return value[:12] if isinstance(value, str) else json.dumps(value)


def _checksum(arrays: Mapping[str, Array], text: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps(dict(sorted(text.items()))).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {len(array)} ".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for array in (*dataset.inputs, *dataset.targets):
        digest.update(f"{array.dtype.str} {array.shape} ".encode())
        for block in (array,) if isinstance(array, np.ndarray) else array.blocks():
            digest.update(np.ascontiguousarray(block).data)
    return digest.hexdigest()


def _flat(name: str, value: object) -> dict[str, Any]:
    """Nested tables as one, by dotted names, as an operator reads them in a refusal."""
    if not isinstance(value, Mapping):
        return {name: list(value) if isinstance(value, tuple) else value}
    return {key: part for inner, v in value.items() for key, part in _flat(f"{name}.{inner}", v).items()}
