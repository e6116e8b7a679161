"""Convolutions and their gradients, of one and two axes, strided, dilated, in groups, transposed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from export.portable.graph import Graph, Size, UnwritableError, Value

_ATEN = torch.ops.aten
Rule = Callable[..., Any]

# The longest rows for which a product with the identity is the fastest copy.
_SHORT = 12
# The longest of which every other value is better chosen by a product than by a slice.
_SELECTABLE = 128


@dataclass(frozen=True, slots=True)
class Geometry:
    """Of one convolution, a number for each axis; `kernel` in values, not dilated."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def attributes(self) -> dict[str, Any]:
        return {
            "kernel_shape": list(self.kernel),
            "strides": list(self.stride),
            "pads": [*self.padding, *self.padding],
            "dilations": list(self.dilation),
            "group": self.groups,
        }

    @property
    def pointwise(self) -> bool:
        """One place to one place: a product of matrices."""
        return all(k == s == 1 and p == 0 for k, s, p in zip(self.kernel, self.stride, self.padding, strict=True))


def _geometry(
    weight: Value, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> Geometry:
    kernel = tuple(int(k) for k in weight.shape[2:])
    if len(kernel) > 2:
        raise UnwritableError("a convolution of three axes; use nn.Conv2d")
    n = len(kernel)
    stride, padding, dilation = (tuple(v) * n if len(v) == 1 else tuple(v) for v in (stride, padding, dilation))
    return Geometry(kernel, stride, padding, dilation, groups)


def _convolution(
    g: Graph,
    out: torch.Tensor,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> str:
    geometry = _geometry(weight, stride, padding, dilation, groups)
    inputs = [x.name, weight.name] + ([] if bias is None else [bias.name])
    if not transposed:
        return g.op("Conv", *inputs, **geometry.attributes)
    extra = list(output_padding) * len(geometry.kernel) if len(output_padding) == 1 else list(output_padding)
    return g.op("ConvTranspose", *inputs, **geometry.attributes, output_padding=extra)


def _backward(
    g: Graph,
    out: Any,
    gradient: Value,
    x: Value,
    weight: Value,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[str | None, ...]:
    geometry = _geometry(weight, stride, padding, dilation, groups)
    to_input = to_weight = to_bias = None
    if wanted[0]:
        to_input = (
            g.op("Conv", gradient.name, weight.name, **geometry.attributes)
            if transposed
            else input_gradient(g, gradient, x, weight, geometry)
        )
    if wanted[1]:
        # Of a transposed convolution the two change places: its input is the smaller.
        image, small = (gradient, x) if transposed else (x, gradient)
        to_weight = weight_gradient(g, small, image, weight, geometry)
    if wanted[2]:
        to_bias = g.sum(gradient.name, [0, *range(2, gradient.rank)])
    return to_input, to_weight, to_bias


def input_gradient(g: Graph, gradient: Value, x: Value, weight: Value, geometry: Geometry) -> str:
    """float32[batch, channels, ...]: every gradient spread over the window that it came from."""
    if geometry.pointwise and geometry.groups == 1:
        turned = g.transpose(weight.name, 1, 0, *range(2, weight.rank))
        return g.op("Conv", gradient.name, turned, **geometry.attributes)
    left = []
    for axis, (k, s, p, d) in enumerate(
        zip(geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True), start=2
    ):
        reached = (_fixed(gradient, axis) - 1) * s - 2 * p + d * (k - 1) + 1
        left.append(_fixed(x, axis) - reached)
    return g.op("ConvTranspose", gradient.name, weight.name, **geometry.attributes, output_padding=left)


def weight_gradient(g: Graph, small: Value, image: Value, weight: Value, geometry: Geometry) -> str:
    """The weight's gradient: for every place of the kernel, the product of `small` and of what lay under that place.

    small: float32[batch, groups * m, ...], at the places where the kernel was put. image: float32[batch, groups * c,
    ...], what it was put on. The result is float32[groups * m, c, *kernel]. Of the ways to compute it the one that
    copies least is taken: onnxruntime has no views, so that what lies under a place is a copy.
    """
    groups, taps = geometry.groups, _count(geometry.kernel)
    m, c = _fixed(small, 1) // groups, _fixed(image, 1) // groups
    close = set(geometry.stride) == {1} and taps > 1
    if m == c == 1:
        return _by_place(g, small, image, weight, geometry)
    if groups == 1 and close and small.rank == 4 and 2 * c > m:
        return _by_rows(g, small, image, weight, geometry)
    spots = [_fixed(small, axis) for axis in range(2, small.rank)]
    area = _count(spots)
    windows = _windows(g, image, geometry, spots)
    columns = windows[0] if taps == 1 else g.op("Concat", *windows, axis=1)
    rows = g.op("Reshape", small.name, g.ints(0, groups, m, area) if groups > 1 else g.ints(0, m, area))
    if groups == 1:
        columns = g.op("Reshape", columns, g.ints(0, taps * c, area))
        products = g.op("MatMul", rows, g.transpose(columns, 0, 2, 1))
        shape = (m, taps, c)
    else:
        # From taps, groups, channels to groups, taps, channels.
        columns = g.op("Reshape", columns, g.ints(0, taps, groups, c * area))
        columns = g.op("Reshape", g.transpose(columns, 0, 2, 1, 3), g.ints(0, groups, taps * c, area))
        products = g.op("MatMul", rows, g.transpose(columns, 0, 1, 3, 2))
        shape = (groups * m, taps, c)
    summed = g.reshape(g.sum(products, [0]), shape)
    return g.reshape(summed if taps == 1 else g.transpose(summed, 0, 2, 1), weight.shape)


def _by_place(g: Graph, small: Value, image: Value, weight: Value, geometry: Geometry) -> str:
    """One channel to one: a product and a sum for each place of the kernel."""
    axes = list(range(2, small.rank))
    spots = [_fixed(small, axis) for axis in axes]
    if set(geometry.stride) == {1}:
        under, flat, length = _flat(g, small, image, geometry)
        parts = [g.op("Slice", flat, g.ints(o), g.ints(o + length), g.ints(2)) for o in _offsets(geometry, spots)]
        axes = [2]
    else:
        under, parts = small.name, _windows(g, image, geometry, spots)
    sums = [g.sum(g.op("Mul", under, part), [0, *axes]) for part in parts]
    column = g.ints(1)
    return g.reshape(g.op("Concat", *(g.op("Unsqueeze", s, column) for s in sums), axis=1), weight.shape)


def _by_rows(g: Graph, small: Value, image: Value, weight: Value, geometry: Geometry) -> str:
    """Stride 1: `small` once for every column of the kernel, shifted by it, times the image shifted row by row.

    Rows are laid out as wide as the padded image's, so that a shift by rows is a run of the image's values.
    """
    (high, wide), (down, across) = geometry.kernel, geometry.dilation
    m, c = _fixed(small, 1), _fixed(image, 1)
    height, width = _fixed(small, 2), _fixed(small, 3) + (wide - 1) * across
    padded = _padded(g, image, geometry)
    flat = g.op("Reshape", padded, g.ints(0, c, -1))
    lead = (wide - 1) * across
    lined = g.op("Reshape", _extended(g, small.name, small.shape, 3, 0, lead), g.ints(0, m, height * width))
    lined = _extended(g, lined, (small.shape[0], m, height * width), 2, lead, 0)
    shifted = [
        g.op("Slice", lined, g.ints(lead - j * across), g.ints(lead - j * across + height * width), g.ints(2))
        for j in range(wide)
    ]
    columns = shifted[0] if wide == 1 else g.op("Concat", *shifted, axis=1)
    found = []
    for i in range(high):
        begin = i * down * width
        rows = g.op("Slice", flat, g.ints(begin), g.ints(begin + height * width), g.ints(2))
        products = g.op("MatMul", columns, g.transpose(rows, 0, 2, 1))
        found.append(g.reshape(g.sum(products, [0]), (wide, m, 1, c)))
    return g.transpose(g.op("Concat", *found, axis=2), 1, 3, 2, 0)


def _flat(g: Graph, small: Value, image: Value, geometry: Geometry) -> tuple[str, str, int]:
    """`small` and the padded image as float32[batch, channels, n], rows equally wide, and how long the former is."""
    wide = (geometry.kernel[-1] - 1) * geometry.dilation[-1]
    spots = [_fixed(small, axis) for axis in range(2, small.rank)]
    length = _count(spots[:-1]) * (spots[-1] + wide) - wide
    channels = _fixed(small, 1)
    rows = g.op("Reshape", _extended(g, small.name, small.shape, small.rank - 1, 0, wide), g.ints(0, channels, -1))
    under = g.op("Slice", rows, g.ints(0), g.ints(length), g.ints(2)) if len(spots) > 1 else small.name
    return under, g.op("Reshape", _padded(g, image, geometry), g.ints(0, channels, -1)), length


def _offsets(geometry: Geometry, spots: Sequence[int]) -> list[int]:
    """How far from the first value of a flat image each place of the kernel lies."""
    width = spots[-1] + (geometry.kernel[-1] - 1) * geometry.dilation[-1]
    steps = [width, 1][-len(spots) :]
    return [
        sum(i * d * step for i, d, step in zip(place, geometry.dilation, steps, strict=True))
        for place in product(*(range(k) for k in geometry.kernel))
    ]


def _padded(g: Graph, image: Value, geometry: Geometry) -> str:
    name, shape = image.name, list(image.shape)
    # The last axis first, so that what the others add are whole runs.
    for axis, width in reversed(list(enumerate(geometry.padding, start=2))):
        name = _extended(g, name, shape, axis, width, width)
        shape[axis] = int(shape[axis]) + 2 * width
    return name


def _extended(g: Graph, name: str, shape: Sequence[Size], axis: int, before: int, after: int) -> str:
    """Zeros put before and after along one axis: by Concat, since onnxruntime's Pad takes several times as long, or
    where the axis is the last one and short, by a product with a part of the identity, which is faster still."""
    if not before and not after:
        return name
    length = int(shape[axis])
    if axis == len(shape) - 1 and length <= _SHORT:
        return g.op("MatMul", name, g.constant(np.eye(length, before + length + after, k=before)))
    parts = [name]
    for width, place in ((before, 0), (after, len(parts) + 1)):
        if width:
            sizes = (*shape[:axis], width, *shape[axis + 1 :])
            parts.insert(place, g.op("Expand", g.constant(0.0), g.sizes(sizes)))
    return g.op("Concat", *parts, axis=axis)


def _windows(g: Graph, image: Value, geometry: Geometry, spots: Sequence[int]) -> list[str]:
    """What lies under each place of the kernel: float32[batch, channels, *spots], one for each."""
    axes = range(2, image.rank)
    if geometry.stride[-1] > 1 and _fixed(image, image.rank - 1) <= _SELECTABLE:
        return _selected(g, image, geometry, spots)
    padded = _padded(g, image, geometry)
    places = product(*(range(k) for k in geometry.kernel))
    whole = all(
        k == 1 and p == 0 and s == 1 for k, p, s in zip(geometry.kernel, geometry.padding, geometry.stride, strict=True)
    )
    if whole:
        return [padded]
    found = []
    for place in places:
        starts = [i * d for i, d in zip(place, geometry.dilation, strict=True)]
        ends = [b + (n - 1) * s + 1 for b, n, s in zip(starts, spots, geometry.stride, strict=True)]
        found.append(g.op("Slice", padded, g.ints(*starts), g.ints(*ends), g.ints(*axes), g.ints(*geometry.stride)))
    return found


def _selected(g: Graph, image: Value, geometry: Geometry, spots: Sequence[int]) -> list[str]:
    """Windows with a stride: columns by products with parts of the identity, rows by slices. onnxruntime's Slice takes
    values one by one where the last axis has steps."""
    last, length = image.rank - 1, _fixed(image, image.rank - 1)
    rows, pads = image.name, geometry.padding[:-1]
    for axis, width in enumerate(pads, start=2):
        rows = _extended(g, rows, image.shape, axis, width, width)
    columns = []
    for j in range(geometry.kernel[-1]):
        choice = np.zeros((length, spots[-1]))
        for o in range(spots[-1]):
            source = o * geometry.stride[-1] + j * geometry.dilation[-1] - geometry.padding[-1]
            if 0 <= source < length:
                choice[source, o] = 1
        columns.append(g.op("MatMul", rows, g.constant(choice)))
    if last == 2:
        return columns
    found = []
    for i in range(geometry.kernel[0]):
        begin, step = i * geometry.dilation[0], geometry.stride[0]
        end = begin + (spots[0] - 1) * step + 1
        found += [g.op("Slice", c, g.ints(begin), g.ints(end), g.ints(2), g.ints(step)) for c in columns]
    return found


def _fixed(value: Value, axis: int) -> int:
    size = value.shape[axis]
    if not isinstance(size, int):
        raise UnwritableError("a convolution over an axis that depends on the batch")
    return size


def _count(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


RULES: Mapping[Any, Rule] = {
    _ATEN.convolution.default: _convolution,
    _ATEN.convolution_backward.default: _backward,
}
