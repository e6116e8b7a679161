"""Error feedback around any codec: what one payload leaves out is added to the next vector.

Karimireddy et al. 2019, Error Feedback Fixes SignSGD and other Gradient Compression Schemes, algorithm 1, applied to
the difference of models after local steps instead of to a gradient. The residual is computed from the decoded
payload, so it accounts for exactly what the receiver sees, rounding and clipping included.

It converges for codecs that contract, ||x - Q(x)|| <= ||x||. Biased ones all do. An unbiased one may be off by more
than the vector itself (QSGD with few levels): carried on, such an error would grow from round to round. It is let go
then, which biases nothing, since its mean is zero (DECISIONS, "An error larger than the vector is let go").

What a shared mask leaves out is not carried on. Nobody trains there: the dense copy of those coordinates is the
server's, which moves it by the devices' reports (Lin et al. 2020, DPF: the feedback is to the dense weights), and a
remainder from before a coordinate was pruned would be added to a copy that has long moved on.
"""

import numpy as np

from sparse.codecs.frame import decode, encode
from sparse.codecs.selection import Vector
from sparse.codecs.spec import CodecSpec
from sparse.codecs.tensors import Shapes
from sparse.masks import Mask, masked


def encode_with_feedback(
    delta: Vector,
    residual: Vector,
    spec: CodecSpec,
    layout: bytes,
    mask: Mask | None = None,
    shapes: Shapes | None = None,
    seed: int = 0,
) -> tuple[bytes, Vector]:
    """The payload of delta + residual, and the new residual: (delta + residual) - decode(payload).

    delta, residual: float32[d], not changed. With a mask, bool[d], both count only where it keeps them, whatever the
    codec; the new residual is zero elsewhere. shapes, seed: as `encode` takes them. Keep the old residual until the
    receiver has the payload for good; a payload that is refused must leave it as it was. Raises ValueError as `encode`
    does.
    """
    if delta.shape != residual.shape:
        raise ValueError(f"residual: {residual.shape} does not fit the delta {delta.shape}; start again from zeros")
    # An overflow becomes an infinity, which encode refuses by its index.
    with np.errstate(over="ignore", invalid="ignore"):
        corrected = delta + residual
    if mask is not None:
        corrected = masked(corrected, mask)
    payload = encode(corrected, spec, layout, mask, shapes, seed)
    with np.errstate(over="ignore"):
        left = corrected - decode(payload, len(corrected), layout, mask=mask, shapes=shapes)
    if spec.unbiased and not _energy(left) <= _energy(corrected):
        left = np.zeros_like(left)
    return payload, left


def _energy(vector: Vector) -> float:
    return float(np.square(vector, dtype=np.float64).sum())
