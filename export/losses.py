"""Losses over classes in operators that torch's exporter gets right and the training runtime has gradients for."""

import torch
from torch import Tensor

# Torch's codes of a reduction; the third, 2, is the sum.
_NONE, _MEAN = 0, 1


def nll(
    log_p: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = _MEAN, ignore_index: int = -100
) -> Tensor:
    """aten.nll_loss_nd."""
    target, _, share = _shares(target, weight, ignore_index)
    return _reduced(_picked(log_p, target) * share, share.sum(), reduction)


def cross_entropy(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: int = _MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    """aten.cross_entropy_loss, its target classes or shares of them.

    Smoothed labels: Szegedy et al., "Rethinking the Inception Architecture" (CVPR 2016), section 7.
    """
    log_p = torch.log_softmax(scores, 1)
    smooth = label_smoothing / scores.shape[1]
    weighted = log_p if weight is None else log_p * weight.reshape(-1, *[1] * (scores.ndim - 2))
    if target.is_floating_point():
        losses = -(weighted * (target * (1 - label_smoothing) + smooth)).sum(1)
        return _reduced(losses, torch.ones_like(losses).sum(), reduction)
    target, counted, share = _shares(target, weight, ignore_index)
    losses = (1 - label_smoothing) * _picked(log_p, target) * share - smooth * weighted.sum(1) * counted
    return _reduced(losses, share.sum(), reduction)


def _shares(target: Tensor, weight: Tensor | None, ignore_index: int) -> tuple[Tensor, Tensor, Tensor]:
    """The targets with 0 where one is ignored; 1 where one counts, else 0; and how much it counts."""
    counts = target != ignore_index
    target = torch.where(counts, target, torch.zeros_like(target))
    counted = counts.to(torch.float32)
    return target, counted, counted if weight is None else counted * weight[target]


def _picked(log_p: Tensor, target: Tensor) -> Tensor:
    return -log_p.gather(1, target.unsqueeze(1)).squeeze(1)


def _reduced(losses: Tensor, divisor: Tensor, reduction: int) -> Tensor:
    if reduction == _NONE:
        return losses
    return losses.sum() / divisor if reduction == _MEAN else losses.sum()
