"""Running statistics after a step: what can only be at or above zero, a variance, stays there.

An update says of them by how much they moved since its base. Where every update of a fold is late, as with
mode = "buffered", other folds have moved them meanwhile, and the sum of all that is said may lead past zero: a model
with a negative variance is none (its outputs are NaN).
"""

import numpy as np

from edge_agent.runtimes.engine import Vector
from protocol.manifest import Manifest

# As fleet-export names them, after torch. No other sign tells them: means begin at 0, and have to go below it.
_VARIANCE = "running_var"


def kept_above_zero(manifest: Manifest, before: Vector, after: Vector) -> Vector:
    """`after`, float32[total], but a variance that would go below zero becomes half of what it was in `before`."""
    kept = after
    for tensor in manifest.tensors:
        if tensor.kind != "buffer" or tensor.name.rpartition(".")[2] != _VARIANCE:
            continue
        part = slice(tensor.offset, tensor.offset + tensor.size)
        low = after[part] < 0
        if low.any():
            kept = after.copy() if kept is after else kept
            kept[part] = np.where(low, before[part] / 2, after[part])
    return kept
