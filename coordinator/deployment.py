"""The model of a version as a file to deploy: under its mask, or the dense copy behind it."""

import gzip
from dataclasses import dataclass

import numpy as np

from coordinator.masking import deployed
from coordinator.reports import ModelFile
from coordinator.structure import Structure, unpack_structure
from edge_agent.runtimes.engine import Vector
from protocol.blobs import read_blob
from protocol.bundle import Bundle, deploy
from protocol.errors import SparsefleetError
from sparse.masks import Mask


@dataclass(frozen=True, slots=True)
class Deployable:
    """dense: float32[total]. mask: bool[n_parameters], None where nothing is left out."""

    dense: Vector
    mask: Mask | None

    @property
    def model(self) -> Vector:
        """float32[total], 0 where the mask leaves out: what was evaluated."""
        return deployed(self.dense, Structure(mask=self.mask))


def read_deployable(model: ModelFile) -> Deployable:
    """The model of a version and its mask. Raises SparsefleetError naming the version that is damaged or gone."""
    try:
        dense = np.frombuffer(read_blob(model.path), dtype="<f4").astype(np.float32)
        mask = None if model.structure is None else unpack_structure(read_blob(model.structure)).mask
    except SparsefleetError as error:
        raise SparsefleetError(f"version {model.version}: {error}; or export another version") from None
    return Deployable(dense, mask)


def inference_file(bundle: Bundle, model: Vector) -> bytes:
    """The inference graph with this model's values: float32[total]. Any ONNX runtime reads it."""
    graph = bundle.path(bundle.manifest.inference.path).read_bytes()
    return deploy(graph, bundle.manifest, model)


def compressed(data: bytes) -> bytes:
    """The same, for gunzip: zeros cost next to nothing. The same bytes for the same file."""
    return gzip.compress(data, 9, mtime=0)
