"""How many bytes an update is likely to have: those of normally distributed differences, packed for this."""

import numpy as np

from sparse.codecs.spec import CodecSpec
from sparse.codecs.tensors import Shapes
from sparse.codecs.update import Shared, encode_update, max_update_bytes

# Of values that are drawn and packed: the rest of a longer vector takes as much a value.
MOST_DRAWN = 1 << 21
_FLOAT = 4


def typical_update_bytes(
    n_parameters: int, n_buffers: int, spec: CodecSpec, shared: Shared | None = None, shapes: Shapes | None = None
) -> int:
    """Bytes of a payload under `spec`: headers and floats exactly, and what is entropy coded as of normal values.

    Trained differences have longer tails, which cost a little less. Never more than `max_update_bytes`.
    """
    # A part of a vector has no tensors; factors have the size of whole ones.
    n = n_parameters if spec.selection == "powersgd" else min(n_parameters, MOST_DRAWN)
    own = shapes if n == n_parameters else None
    rng = np.random.default_rng(0)
    delta, none = rng.standard_normal(n, dtype=np.float32), np.zeros(n, np.float32)
    part = None
    if shared is not None:
        # Of a part of the vector, a part that is kept as much as the whole is.
        mask = shared.mask if n == n_parameters else rng.permutation(shared.mask)[:n]
        part = Shared(mask, shared.report * n // max(1, n_parameters))
    payload, _ = encode_update(delta, np.zeros(0, np.float32), none, spec, bytes(8), part, delta, own)
    scale = n_parameters / n if n else 1.0
    found = round(len(payload) * scale) + _FLOAT * n_buffers
    return min(found, max_update_bytes(n_parameters, n_buffers, spec, shared, shapes))
