"""Pools and their gradients.

A maximum over windows that do not overlap is a tournament between the places of a window, column by column, then row by
row: its gradient follows the same matches backwards. It gives ties to the first place, as torch does, and never asks
for indices, which onnxruntime computes one value at a time.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from export.portable.graph import Graph, Value

_ATEN = torch.ops.aten
Rule = Callable[..., Any]


def _max_pool(
    g: Graph,
    out: Any,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[str, None]:
    spots = [int(s) for s in out[0].shape[2:]]
    if _apart(x, kernel, stride or kernel, padding, dilation, spots):
        rounds = _tournament(g, x, kernel, spots)
        return g.reshape(rounds[-1][-1][0], tuple(out[0].shape)), None
    attributes = _attributes(kernel, stride or kernel, padding, dilation, ceil_mode)
    return g.op("MaxPool", x.name, **attributes), None


def _max_pool_backward(
    g: Graph,
    out: Tensor,
    gradient: Value,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil_mode: bool,
    indices: None,
) -> str:
    spots = [int(s) for s in gradient.shape[2:]]
    if _apart(x, kernel, stride or kernel, padding, dilation, spots):
        return _replayed(g, gradient, x, kernel, spots)
    attributes = _attributes(kernel, stride or kernel, padding, dilation, ceil_mode)
    _, places = g.ops("MaxPool", (x.name,), 2, **attributes)
    size = g.op("Size", x.name)
    zeros = g.op("Expand", g.constant(0.0), g.op("Unsqueeze", size, g.ints(0)))
    flat = g.op(
        "ScatterElements", zeros, g.reshape(places, (-1,)), g.reshape(gradient.name, (-1,)), axis=0, reduction="add"
    )
    return g.reshape(flat, x.shape)


def _apart(
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    spots: Sequence[int],
) -> bool:
    """Whether windows neither overlap nor reach outside, and are small enough to be told apart place by place."""
    inside = all(n * k <= int(s) for n, k, s in zip(spots, kernel, x.shape[2:], strict=True))
    return list(stride) == list(kernel) and not any(padding) and set(dilation) == {1} and inside and max(kernel) <= 4


Round = list[tuple[str, str | None]]


def _tournament(g: Graph, x: Value, kernel: Sequence[int], spots: Sequence[int]) -> tuple[Round, Round]:
    """The rounds over columns and over rows: for each place the largest up to it, and 1 where it took the lead.

    Columns: float32[1, n]; rows: float32[n, 1, columns].
    """
    height, width = spots[0] * kernel[0], spots[1] * kernel[1]
    inside = x.name
    if [height, width] != [int(s) for s in x.shape[2:]]:
        inside = g.op("Slice", x.name, g.ints(0, 0), g.ints(height, width), g.ints(2, 3))
    if kernel[1] > 1:
        columns = g.transpose(g.op("Reshape", inside, g.ints(-1, kernel[1])), 1, 0)
        first = _round(g, g.ops("Split", (columns, g.ints(*[1] * kernel[1])), kernel[1], axis=0))
    else:
        first = [(g.op("Reshape", inside, g.ints(1, -1)), None)]
    rows = g.op("Reshape", first[-1][0], g.ints(-1, kernel[0], spots[1]))
    if kernel[0] > 1:
        return first, _round(g, g.ops("Split", (rows, g.ints(*[1] * kernel[0])), kernel[0], axis=1))
    return first, [(rows, None)]


def _round(g: Graph, places: Sequence[str]) -> Round:
    found: Round = [(places[0], None)]
    for place in places[1:]:
        before = found[-1][0]
        won = g.cast(g.op("Greater", place, before), torch.float32)
        found.append((g.op("Max", before, place), won))
    return found


def _replayed(g: Graph, gradient: Value, x: Value, kernel: Sequence[int], spots: Sequence[int]) -> str:
    columns, rows = _tournament(g, x, kernel, spots)
    flow = g.op("Reshape", gradient.name, g.ints(-1, 1, spots[1]))
    flow = g.op("Reshape", _shared_out(g, flow, rows, 1), g.ints(1, -1))
    flow = g.transpose(_shared_out(g, flow, columns, 0), 1, 0)
    height, width = spots[0] * kernel[0], spots[1] * kernel[1]
    whole = g.reshape(flow, (*x.shape[:2], height, width))
    left = [int(x.shape[2]) - height, int(x.shape[3]) - width]
    return g.op("Pad", whole, g.ints(0, 0, 0, 0, 0, 0, *left)) if any(left) else whole


def _shared_out(g: Graph, flow: str, matches: Round, axis: int) -> str:
    """Each place's part of the gradient, along `axis`: the last that took the lead has all of it."""
    parts: list[str] = []
    for _, won in reversed(matches[1:]):
        assert won is not None
        part = g.op("Mul", flow, won)
        flow = g.op("Sub", flow, part)
        parts.insert(0, part)
    return g.op("Concat", flow, *parts, axis=axis) if parts else flow


def _average_pool(
    g: Graph,
    out: Tensor,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> str:
    stride = stride or kernel
    size, spots = [int(s) for s in x.shape[2:]], [int(s) for s in out.shape[2:]]
    counts = _counts(size, spots, kernel, stride, padding, count_include_pad)
    if divisor is None and not ceil_mode and (count_include_pad or not any(padding)):
        attributes = _attributes(kernel, stride, padding, (1,) * len(kernel), False)
        del attributes["dilations"]
        return g.op("AveragePool", x.name, **attributes, count_include_pad=1)
    # Before 1.20 onnxruntime also counts what lies beyond the padding; here nothing is left for it to count.
    beyond = [max(b, 0) for b in _beyond(size, spots, kernel, stride, padding)]
    after = [p + b for p, b in zip(padding, beyond, strict=True)]
    padded = g.op("Pad", x.name, g.ints(0, 0, *padding, 0, 0, *after))
    means = g.op("AveragePool", padded, kernel_shape=list(kernel), strides=list(stride))
    return g.op("Mul", means, g.constant(math.prod(kernel) / (divisor or counts)))


def _beyond(
    size: Sequence[int], spots: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> list[int]:
    """How far the last window reaches past the padding; negative where it ends before."""
    reached = [(n - 1) * s + k - 2 * p for n, s, k, p in zip(spots, stride, kernel, padding, strict=True)]
    return [r - n for r, n in zip(reached, size, strict=True)]


def _average_pool_backward(
    g: Graph,
    out: Tensor,
    gradient: Value,
    x: Value,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int | None,
) -> str:
    stride = stride or kernel
    size, spots = [int(s) for s in x.shape[2:]], [int(s) for s in gradient.shape[2:]]
    if divisor is not None:
        share = g.op("Mul", gradient.name, g.constant(1 / divisor))
    else:
        counts = _counts(size, spots, kernel, stride, padding, count_include_pad)
        even = (counts == counts.flat[0]).all()
        share = g.op("Mul", gradient.name, g.constant(1 / counts.flat[0] if even else 1 / counts[None, None]))
    beyond = _beyond(size, spots, kernel, stride, padding)
    left = [max(-b, 0) for b in beyond]
    channel = g.op("Reshape", share, g.ints(-1, 1, *spots))
    ones = g.constant(np.ones((1, 1, *kernel)))
    pads = [*padding, *(p + max(b, 0) for p, b in zip(padding, beyond, strict=True))]
    spread = g.op(
        "ConvTranspose", channel, ones, kernel_shape=list(kernel), strides=list(stride), pads=pads, output_padding=left
    )
    return g.reshape(spread, x.shape)


def _counts(
    size: Sequence[int],
    spots: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    with_padding: bool,
) -> Any:
    """How many values each window divides by: float32[*spots]."""
    counts = np.ones(())
    for n, many, k, s, p in zip(size, spots, kernel, stride, padding, strict=True):
        begins = np.arange(many) * s - p
        ends = np.minimum(begins + k, n + (p if with_padding else 0))
        counts = np.multiply.outer(counts, ends - (begins if with_padding else np.maximum(begins, 0)))
    return counts


def _attributes(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], ceil_mode: bool
) -> dict[str, Any]:
    return {
        "kernel_shape": list(kernel),
        "strides": list(stride),
        "pads": [*padding, *padding],
        "dilations": list(dilation),
        "ceil_mode": int(ceil_mode),
    }


RULES: Mapping[Any, Rule] = {
    _ATEN.max_pool2d_with_indices.default: _max_pool,
    _ATEN.max_pool2d_with_indices_backward.default: _max_pool_backward,
    _ATEN.avg_pool2d.default: _average_pool,
    _ATEN.avg_pool1d.default: _average_pool,
    _ATEN.avg_pool2d_backward.default: _average_pool_backward,
}
