"""What a fold remembers of devices: how far each was from its peers, in this fold and in those before.

Of one round's updates a liar's is often no farther from the others than that of an honest device with data of its own;
over many rounds it is. Allen-Zhu et al. 2021 (SafeguardSGD, algorithm 1) tell the two by what workers' gradients add up
to. We depart from it: what is kept is a score, not a vector, so that it costs two numbers a device, it fades, so that a
device that was mended counts again, and nobody is shut out: who is left out is decided anew in every fold.
"""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float64]
# By device: the faded sum of its scores, and how much weight those have together.
Standing = Mapping[str, tuple[float, float]]

NEW: Standing = {}
# One fold is not remembered as more than so many times its median score, so that a single accident fades.
_MOST = 10.0


def remember(standing: Standing, memory: float, devices: Sequence[str], scores: Scores) -> tuple[Scores, Standing]:
    """The devices' mean scores with those of earlier folds, and the next standing.

    devices: of each score; one that is there twice is judged by both. Scores are made comparable by their median.
    """
    middle = float(np.median(scores))
    after = dict(standing)
    for device in set(devices):
        total, weight = standing.get(device, (0.0, 0.0))
        after[device] = (memory * total, memory * weight)
    for device, score in zip(devices, scores.tolist(), strict=True):
        total, weight = after[device]
        after[device] = (total + _relative(score, middle), weight + 1.0)
    return np.array([after[device][0] / after[device][1] for device in devices]), after


def pack_standing(standing: Standing) -> bytes:
    """Bytes that say the same numbers to the bit; none for who is not known."""
    return json.dumps(dict(standing), sort_keys=True).encode() if standing else b""


def unpack_standing(data: bytes) -> Standing:
    """From bytes that are our own, checked by digest."""
    return {device: (total, weight) for device, (total, weight) in json.loads(data).items()} if data else NEW


def _relative(score: float, middle: float) -> float:
    if score == middle:
        # Also where all are one and the same update (0), or most have nothing in common (infinite).
        return 1.0
    if score < middle:
        return score / middle
    return min(_MOST, score / middle) if middle > 0.0 else _MOST
