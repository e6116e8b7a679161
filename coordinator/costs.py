"""What a run's model costs, honestly: parameters by both denominators, files, and what training took where measured.

A count of multiplications and additions says nothing of time: it stands only beside the step time that devices
measured. A mask saves bytes and no time; a width tier saves both (docs/sparsity.md).
"""

from dataclasses import dataclass

import numpy as np

from coordinator.deployment import compressed, inference_file, read_deployable
from coordinator.masking import parameters_of
from coordinator.reports import ModelFile, Reports, TrainedRow
from edge_agent.runtimes.engine import Vector
from protocol.bundle import Bundle
from protocol.layout import layout_of
from protocol.manifest import Manifest
from protocol.width import narrowed
from sparse.masks import Mask, sparsity_of
from sparse.tensors import prunable_mask


@dataclass(frozen=True, slots=True)
class ModelCost:
    """One form of the model. parameters: those that are kept; the sparsities are shares of the prunable parameters and
    of all. gzip_bytes: of the same file compressed. accuracy: of this form, None where it was not tried."""

    model: str
    parameters: int
    prunable: int
    sparsity_of_prunable: float
    sparsity_of_all: float
    file_bytes: int
    gzip_bytes: int
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """Training one variant: what it trains, and what that took on the devices. multiply_adds: of one example's step,
    forward and backward, dense: a mask leaves none out. step_ms: the median; peak_mib: the most."""

    variant: str
    parameters: int
    multiply_adds: int | None
    step_ms: float
    peak_mib: float | None
    update_bytes: int
    updates: int
    devices: int


@dataclass(frozen=True, slots=True)
class Costs:
    """A run at one version. Bytes are those of all devices over the whole run, as their senders counted them."""

    version: int
    models: tuple[ModelCost, ...]
    training: tuple[TrainingCost, ...]
    bytes_up: int
    bytes_down: int


def costs(reports: Reports, bundle: Bundle) -> Costs:
    """The costs of the newest version. Raises SparsefleetError where its files are damaged or gone."""
    model = reports.model()
    up, down = reports.traffic()
    training = tuple(_training(bundle.manifest, row) for row in reports.trained())
    return Costs(model.version, _models(bundle, model), training, up, down)


def _models(bundle: Bundle, file: ModelFile) -> tuple[ModelCost, ...]:
    read = read_deployable(file)
    everything = np.ones(bundle.manifest.parameters, dtype=np.bool_)
    if read.mask is None:
        return (_model(bundle, "dense", read.dense, everything, file.accuracy),)
    return (
        _model(bundle, "dense", read.dense, everything, None),
        _model(bundle, "deployed", read.model, read.mask, file.accuracy),
    )


def _model(bundle: Bundle, name: str, model: Vector, mask: Mask, accuracy: float | None) -> ModelCost:
    data, prunable = inference_file(bundle, model), prunable_mask(parameters_of(bundle.manifest))
    return ModelCost(
        model=name,
        parameters=int(np.count_nonzero(mask)),
        prunable=int(np.count_nonzero(mask & prunable)),
        sparsity_of_prunable=sparsity_of(mask, prunable),
        sparsity_of_all=1.0 - int(np.count_nonzero(mask)) / max(1, len(mask)),
        file_bytes=len(data),
        gzip_bytes=len(compressed(data)),
        accuracy=accuracy,
    )


def _training(manifest: Manifest, row: TrainedRow) -> TrainingCost:
    load = manifest.variant(row.variant).load
    return TrainingCost(
        variant=row.variant,
        parameters=layout_of(narrowed(manifest, row.variant), row.variant).n_parameters,
        multiply_adds=None if load is None else load.multiply_adds,
        step_ms=row.step_ms,
        peak_mib=row.peak_mib,
        update_bytes=row.update_bytes,
        updates=row.updates,
        devices=row.devices,
    )
