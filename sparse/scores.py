"""What a parameter is worth: scores float32[n], not negative, of which pruning keeps the largest."""

import numpy as np

from sparse.masks import Vector


def magnitude(weights: Vector) -> Vector:
    """|w| (Han et al. 2015, "Learning both weights and connections"): what is nearly zero is missed least."""
    return np.abs(weights)


def random(n: int, rng: np.random.Generator) -> Vector:
    """Nothing but chance: what every other score must beat, and how SET and RigL begin."""
    return rng.random(n, dtype=np.float32)


def gradient(gradients: Vector) -> Vector:
    """|g| (Evci et al. 2020, RigL, section 3): how fast the loss would fall if the weight came back."""
    return np.abs(gradients)


def saliency(weights: Vector, gradients: Vector) -> Vector:
    """|w g| (Molchanov et al. 2017; Lee et al. 2019, SNIP): the loss without the weight, to first order."""
    with np.errstate(over="ignore"):
        product: Vector = weights * gradients
    return np.abs(product)
