"""A model as the difference to one that the receiver holds: parameters under a codec, buffers as they are.

    frame (frame.py)  parameters of the target less those of the base, under the downlink's codec
    frame (frame.py)  buffers (running statistics) of the target, all/float32, with d = 0 where the model has none

Buffers travel themselves, not as differences, so that they arrive exactly; what is frozen is the base's. Sender and
receiver make the next model by `apply_difference` from the same bytes, so both hold the same bits on every machine.
"""

import numpy as np

from sparse.codecs.frame import encode
from sparse.codecs.selection import Vector
from sparse.codecs.spec import DENSE, CodecSpec
from sparse.codecs.tensors import Shapes
from sparse.codecs.update import decode_update


def encode_difference(
    base: Vector,
    target: Vector,
    n_parameters: int,
    n_buffers: int,
    spec: CodecSpec,
    layout: bytes,
    shapes: Shapes | None = None,
    seed: int = 0,
) -> bytes:
    """The payload that leads from base to about target, both float32[total]: parameters, buffers, then what is frozen.

    shapes: of the parameters' tensors. seed: of what the codec draws. Raises ValueError where the difference is not
    finite.
    """
    # An overflow becomes an infinity, which encode refuses by its index.
    with np.errstate(over="ignore", invalid="ignore"):
        difference = target[:n_parameters] - base[:n_parameters]
    frame = encode(difference, spec, layout, shapes=shapes, seed=seed)
    return frame + encode(target[n_parameters : n_parameters + n_buffers], DENSE, layout)


def apply_difference(
    base: Vector,
    payload: bytes | memoryview,
    n_parameters: int,
    n_buffers: int,
    layout: bytes,
    shapes: Shapes | None = None,
) -> Vector:
    """The model that a payload leads to from base: float32[total], a new vector. Raises PayloadError.

    The payload says its codec itself: whether the result is what was meant, the caller finds by its digest.
    """
    parameters, buffers = decode_update(payload, n_parameters, n_buffers, layout, shapes=shapes)
    model = base.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        model[:n_parameters] += parameters
    model[n_parameters : n_parameters + n_buffers] = buffers
    return model
