"""The runtime seam: a gradient engine takes one flat model vector and a batch, and gives loss, gradient and buffers.

The model vector is float32[total] in manifest order: parameters, then buffers (running statistics), then frozen
tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples along the first axis of every array, inputs and targets in manifest order and of manifest types."""

    inputs: tuple[Array, ...]
    targets: tuple[Array, ...]

    def __len__(self) -> int:
        return len(self.inputs[0])


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one forward and backward pass found.

    gradient: float32[parameters], of the batch's loss, zero where the variant freezes. buffers: float32[buffers],
    their values after the pass. Both are the caller's to keep until the next call of the same engine. metrics: of the
    outputs in training mode; empty where the backend's graph computes none.
    """

    loss: float
    gradient: Vector
    buffers: Vector
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Loss and metrics over a batch in evaluation mode, as means over `examples` examples."""

    loss: float
    metrics: Mapping[str, float]
    examples: int


class Engine(Protocol):
    """Runs one bundle variant. Pure from outside: the same model, batch and seed give the same result."""

    @property
    def name(self) -> str:
        """The backend's name in manifests, logs and settings."""

    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        """One training-mode pass. model: float32[total], not changed. seed: not negative, of all that is drawn."""

    def evaluate(self, model: Vector, batch: Batch) -> Evaluation:
        """One evaluation-mode pass. model: float32[total], not changed."""
