"""The masks of dropout, drawn outside the graph from a seed, so that a training step is a function of its arguments.

Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting" (JMLR 15, 2014), in its inverted
form: what is kept grows by 1 / (1 - rate) while training, and evaluation has no dropout at all.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from protocol.manifest import Dropout


def masks(dropouts: Sequence[Dropout], examples: int, seed: int) -> list[npt.NDArray[np.float32]]:
    """A mask for each dropout, float32[examples, *shape]; the same for the same seed, which is not negative."""
    return [_mask(dropout, examples, np.random.default_rng([seed, k])) for k, dropout in enumerate(dropouts)]


def _mask(dropout: Dropout, examples: int, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    kept = rng.random((examples, *dropout.shape), dtype=np.float32) >= dropout.rate
    # At rate 1 nothing is kept, and there is nothing to scale.
    return kept * np.float32(1.0 / (1.0 - dropout.rate) if dropout.rate < 1 else 0.0)
