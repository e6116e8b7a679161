"""How important each channel is, by its weights, by their gradients, or by chance."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sparse.structure import ChannelGroup, Structure, length

Score = Literal["magnitude", "gradient", "random"]
Scores = dict[str, npt.NDArray[np.float64]]


def channel_scores(
    module: nn.Module, groups: Sequence[ChannelGroup], structure: Structure, score: Score = "magnitude", seed: int = 0
) -> Scores:
    """The importance of each group's channels, float64[size] by the group's name.

    magnitude: the sum of squares of a channel's weights, each tensor's divided by their mean, so that a layer of many
    small weights counts as much as one of few large ones. gradient: the square of the sum of weight times gradient,
    likewise, which is how much the loss would change to first order (Molchanov et al., "Pruning Convolutional Neural
    Networks for Resource Efficient Inference", ICLR 2017, equation 8); from the gradients at hand. random: a draw.

    Raises ValueError for an unknown score, and for gradients that are not there.
    """
    if score not in get_args(Score):
        raise ValueError(f"score: {score!r} is unknown; use {', '.join(get_args(Score))}")
    if score == "random":
        rng = np.random.default_rng(seed)
        return {group.name: rng.random(group.size) for group in groups}
    return _summed(module, groups, structure, _squares if score == "magnitude" else _changes)


def _summed(
    module: nn.Module,
    groups: Sequence[ChannelGroup],
    structure: Structure,
    of: Callable[[str, Tensor, int], npt.NDArray[np.float64]],
) -> Scores:
    found = {group.name: np.zeros(group.size) for group in groups}
    parameters: Mapping[str, Tensor] = dict(module.named_parameters())
    for name, axes in structure.items():
        # Biases and norms follow their layer's weights.
        if name not in parameters or parameters[name].ndim < 2:
            continue
        for axis, segments in enumerate(axes):
            along, start = of(name, parameters[name], axis), 0
            for segment in segments:
                end = start + length([segment])
                if segment.group in found:
                    each = along[start:end].reshape(segment.size, segment.block).sum(1)
                    found[segment.group] += each / (each.mean() or 1.0)
                start = end
    return found


def _squares(_: str, tensor: Tensor, axis: int) -> npt.NDArray[np.float64]:
    return _along(tensor.detach().double() ** 2, axis)


def _changes(name: str, tensor: Tensor, axis: int) -> npt.NDArray[np.float64]:
    if tensor.grad is None:
        raise ValueError(f"score: {name} has no gradient; call backward on a batch's loss before, or use magnitude")
    change: npt.NDArray[np.float64] = _along(tensor.detach().double() * tensor.grad.double(), axis) ** 2
    return change


def _along(values: Tensor, axis: int) -> npt.NDArray[np.float64]:
    """Sums over all other axes: float64."""
    summed: npt.NDArray[np.float64] = torch.movedim(values, axis, 0).flatten(1).sum(1).cpu().numpy()
    return summed
