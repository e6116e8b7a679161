"""Masks learnt over frozen weights: a chance for each weight to be kept, scores to learn it by, and one bit to say it.

The weights never move. What is learnt is which of them take part: the chance p of a weight is that of its bit being 1,
and the model is weights x m, with m = (p >= 1/2). A device turns chances into scores, s = log(p / (1 - p)), steps on

    dL/ds = G x weights x sigmoid(s)(1 - sigmoid(s)),    G = dL/d(weights x m)    straight through the threshold

and in the end sends one bit a weight, drawn by its chance: Bernoulli(sigmoid(s)). The mean of all devices' bits is the
fleet's next p.

Thresholded scores over pretrained weights, and the gradient straight through: Zhao, Lin, Mi, Jaggi, Schuetze, "Masking
as an efficient alternative to finetuning" (EMNLP 2020), section 3. Bits that are drawn, and their mean as the fleet's
chances: Isik, Pase, Gunduz, Weissman, Zorzi, "Sparse random networks for communication-efficient federated learning"
(FedPM, ICLR 2023), algorithm 1. Bits that are thresholded would lose all that a round moves by less than it takes to
cross one half; of bits that are drawn the mean is what was learnt. Where we depart: from FedPM, that the weights are
pretrained and chances begin near 1, that steps see the likeliest mask and not one that is drawn for each, since that is
what is evaluated and deployed, and that chances travel down in a byte each, whose 256 levels never reach 0 or 1, so
that no weight is out for good; from Zhao et al., the sigmoid, which makes scores chances.
"""

import numpy as np
import numpy.typing as npt

from sparse.masks import Mask, Vector

LEVELS = 256
# Of a mean of equal halves, which floats may miss by a little: who is tied stays.
_HALF = 0.5 - 1e-6


def kept_of(chances: Vector) -> Mask:
    """The likeliest mask: bool[d], True where at least half would keep the weight."""
    return np.asarray(chances >= _HALF)


def pack_chances(chances: Vector) -> bytes:
    """A byte for each of float32[d] from 0 to 1: the level that it is in, of 256 alike."""
    # A tie is on the side where `kept_of` has it.
    level = np.floor(np.where(kept_of(chances), np.maximum(chances, 0.5), chances) * LEVELS)
    packed: bytes = np.clip(level, 0, LEVELS - 1).astype(np.uint8).tobytes()
    return packed


def unpack_chances(data: bytes | memoryview) -> Vector:
    """The middle of each level: float32[d], never 0 or 1."""
    return ((np.frombuffer(data, np.uint8).astype(np.float32) + np.float32(0.5)) / np.float32(LEVELS)).astype(
        np.float32
    )


def scores_of(chances: Vector) -> Vector:
    """float32[d], whose sigmoids are the chances, which are above 0 and below 1."""
    return np.asarray(np.log(chances / (1.0 - chances)), np.float32)


def chances_of(scores: Vector) -> Vector:
    """The sigmoid: float32[d]. Scores that ran away give 0 or 1 without a warning."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-scores)), np.float32)


def drawn(chances: Vector, rng: np.random.Generator) -> Mask:
    """A mask whose every bit is 1 with its own chance: bool[d]."""
    return np.asarray(rng.random(len(chances), np.float32) < chances)


def straight_through(gradient: Vector, weights: Vector, chances: Vector) -> Vector:
    """dL/ds: float32[d], of float32[d] gradients with regard to the weights under the mask."""
    slope: npt.NDArray[np.float32] = chances * (1.0 - chances)
    return np.asarray(gradient * weights * slope, np.float32)
