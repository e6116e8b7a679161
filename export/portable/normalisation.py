"""Batch, layer and group normalisation, forward and backward.

Batch normalisation: Ioffe and Szegedy, "Batch Normalization" (ICML 2015), whose gradient is written as one affine map a
channel of the gradient and one of what was normalised, so that neither is centred in memory first.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from export.portable.graph import Graph, UnwritableError, Value

_ATEN = torch.ops.aten
Rule = Callable[..., Any]


def _channels(x: Value) -> int:
    channels = x.shape[1]
    if not isinstance(channels, int):
        raise UnwritableError("a normalisation over channels whose number depends on the batch")
    return channels


def _along_channels(g: Graph, name: str, x: Value) -> str:
    """float32[channels] as it multiplies float32[batch, channels, ...]."""
    return g.reshape(name, (1, _channels(x), *[1] * (x.rank - 2)))


def _per_channel(g: Graph, x: Value) -> Any:
    """How many values each channel has in a batch: a number, or an expression of the batch."""
    return x.shape[0] * math.prod(int(s) for s in x.shape[2:])


def _constant(g: Graph, x: Value, value: float) -> str:
    return g.constant([value] * _channels(x))


def _trained(
    g: Graph,
    out: Any,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[str, ...]:
    """The batch's own statistics, and the running ones after it.

    With momentum 0 the operator's further outputs are the batch's mean and (biased) variance. The running statistics
    follow in the open, because torch's running variance is of the unbiased kind and ONNX's is not.
    """
    y, batch_mean, batch_variance = _normalised(g, x, weight, bias, (mean.name, variance.name), eps)
    deviation = g.op("Reciprocal", g.op("Sqrt", g.op("Add", batch_variance, g.constant(eps))))
    count = g.number(_per_channel(g, x), torch.float32)
    one = g.constant(1.0)
    # One value a channel has no unbiased variance; torch refuses it, and a device should not divide by zero.
    correction = g.op("Div", count, g.op("Max", g.op("Sub", count, one), one))
    unbiased = g.op("Mul", batch_variance, correction)
    after = [
        g.op("Add", g.op("Mul", old.name, g.constant(1 - momentum)), g.op("Mul", new, g.constant(momentum)))
        for old, new in ((mean, batch_mean), (variance, unbiased))
    ]
    return y, batch_mean, deviation, *after


def _stateless(
    g: Graph, out: Any, x: Value, weight: Value | None, bias: Value | None, training: bool, momentum: float, eps: float
) -> tuple[str, ...]:
    """The batch's own statistics alone."""
    axes = g.ints(0, *range(2, x.rank))
    scratch = g.op("ReduceMax", x.name, axes, keepdims=0), g.op("ReduceMin", x.name, axes, keepdims=0)
    y, mean, variance = _normalised(g, x, weight, bias, scratch, eps)
    return y, mean, g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, g.constant(eps))))


def _normalised(
    g: Graph, x: Value, weight: Value | None, bias: Value | None, like: tuple[str, str], eps: float
) -> tuple[str, ...]:
    scale = _constant(g, x, 1.0) if weight is None else weight.name
    shift = _constant(g, x, 0.0) if bias is None else bias.name
    # onnxruntime writes the statistics over the inputs of that place, constants included: they get values of their own,
    # float32[channels], finite whatever `like` holds.
    scratch = [g.cast(g.op("IsNaN", name), torch.float32) for name in like]
    return g.ops("BatchNormalization", (x.name, scale, shift, *scratch), 3, epsilon=eps, momentum=0.0, training_mode=1)


def _resting(
    g: Graph,
    out: Any,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value,
    variance: Value,
    momentum: float,
    eps: float,
) -> tuple[str | None, ...]:
    """In evaluation mode, by the running statistics."""
    scale = _constant(g, x, 1.0) if weight is None else weight.name
    shift = _constant(g, x, 0.0) if bias is None else bias.name
    inputs = (x.name, scale, shift, mean.name, variance.name)
    return g.op("BatchNormalization", *inputs, epsilon=eps), None, None


def _backward(
    g: Graph,
    out: Any,
    gradient: Value,
    x: Value,
    weight: Value | None,
    running_mean: Value | None,
    running_variance: Value | None,
    saved_mean: Value | None,
    saved_deviation: Value | None,
    training: bool,
    eps: float,
    wanted: Sequence[bool],
) -> tuple[str | None, ...]:
    axes = [0, *range(2, x.rank)]
    if training:
        assert saved_mean is not None
        assert saved_deviation is not None
        mean, deviation = saved_mean.name, saved_deviation.name
    else:
        assert running_mean is not None
        assert running_variance is not None
        mean = running_mean.name
        deviation = g.op("Reciprocal", g.op("Sqrt", g.op("Add", running_variance.name, g.constant(eps))))
    scale = deviation if weight is None else g.op("Mul", weight.name, deviation)
    direct = g.op("Mul", gradient.name, _along_channels(g, scale, x))
    if not training and not any(wanted[1:]):
        return direct, None, None
    total = g.sum(gradient.name, axes)
    along = g.sum(g.op("Mul", gradient.name, x.name), axes)
    # Sum of gradient * (x - mean) over each channel.
    centred = g.op("Sub", along, g.op("Mul", mean, total))
    to_weight, to_bias = g.op("Mul", centred, deviation), total
    if not wanted[0] or not training:
        return (direct if wanted[0] else None), to_weight, to_bias
    share = g.op("Div", scale, g.number(_per_channel(g, x), torch.float32))
    slope = g.op("Neg", g.op("Mul", g.op("Mul", centred, g.op("Mul", deviation, deviation)), share))
    shift = g.op("Neg", g.op("Mul", total, share))
    # slope * (x - mean) + shift in one pass: what the operator does in evaluation mode at variance 1.
    line = (x.name, slope, shift, mean, _constant(g, x, 1.0))
    return g.op("Add", direct, g.op("BatchNormalization", *line, epsilon=0.0)), to_weight, to_bias


def _layer_norm(
    g: Graph, out: Any, x: Value, sizes: Sequence[int], weight: Value | None, bias: Value | None, eps: float
) -> tuple[str, ...]:
    scale = g.op("Expand", g.constant(1.0), g.ints(*sizes)) if weight is None else weight.name
    inputs = (x.name, scale) + (() if bias is None else (bias.name,))
    return g.ops("LayerNormalization", inputs, 3, axis=-len(sizes), epsilon=eps)


def _group_norm(
    g: Graph,
    out: Any,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    examples: Any,
    channels: Any,
    area: Any,
    groups: int,
    eps: float,
) -> tuple[str, ...]:
    """Every group of every example is a row of a layer normalisation; weight and bias follow, a number a channel."""
    size = _channels(x) // groups * math.prod(int(s) for s in x.shape[2:])
    rows = g.op("Reshape", x.name, g.ints(0, groups, size))
    ones = g.op("Expand", g.constant(1.0), g.ints(size))
    y, mean, deviation = g.ops("LayerNormalization", (rows, ones), 3, axis=-1, epsilon=eps)
    y = g.reshape(y, x.shape)
    if weight is not None:
        y = g.op("Mul", y, _along_channels(g, weight.name, x))
    if bias is not None:
        y = g.op("Add", y, _along_channels(g, bias.name, x))
    shape = tuple(out[1].shape)
    return y, g.reshape(mean, shape), g.reshape(deviation, shape)


RULES: Mapping[Any, Rule] = {
    _ATEN._native_batch_norm_legit.no_stats: _stateless,
    _ATEN._native_batch_norm_legit_functional.default: _trained,
    _ATEN._native_batch_norm_legit_no_training.default: _resting,
    _ATEN.native_batch_norm_backward.default: _backward,
    _ATEN.native_layer_norm.default: _layer_norm,
    _ATEN.native_group_norm.default: _group_norm,
}
