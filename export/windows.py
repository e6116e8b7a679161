"""Windows and sizes in operators that the training runtime has gradients for: pools, upsampling, splits, and so on."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def amax(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    """aten.amax, as a max-pool over everything; not over the examples."""
    axes = sorted(d % x.ndim for d in dim) or list(range(x.ndim))
    if axes[0] == 0:
        return NotImplemented  # type: ignore[no-any-return]
    kept = [d for d in range(1, x.ndim) if d not in axes]
    size = math.prod(x.shape[d] for d in axes)
    flat = x.permute(0, *kept, *axes).reshape(x.shape[0], math.prod(x.shape[d] for d in kept), size)
    shape = [1 if d in axes else x.shape[d] for d in range(x.ndim) if keepdim or d not in axes]
    return torch.max_pool1d(flat, size).reshape(shape)


def amin(x: Tensor, dim: Sequence[int] = (), keepdim: bool = False) -> Tensor:
    return -amax(-x, dim, keepdim)


def max_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return amax(x, [dim], keepdim), x.argmax(dim, keepdim)


def min_dim(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    return amin(x, [dim], keepdim), x.argmin(dim, keepdim)


def adaptive_max_pool(x: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """aten.adaptive_max_pool1d and 2d where windows are even. The places of the largest are not given."""
    given = x.shape[2:]
    if any(g % s for g, s in zip(given, size, strict=True)):
        return NotImplemented  # type: ignore[no-any-return]
    window = [g // s for g, s in zip(given, size, strict=True)]
    pooled = torch.max_pool1d(x, window) if len(window) == 1 else torch.max_pool2d(x, window)
    return pooled, torch.zeros_like(pooled, dtype=torch.int64)


def adaptive_largest(x: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """aten.adaptive_max_pool1d and 2d for graphs without gradients. The places of the largest are not given."""
    for axis, (have, want) in enumerate(zip(x.shape[2:], size, strict=True), start=2):
        spans = uneven(have, want)
        x = torch.cat([x.narrow(axis, begin, end - begin).amax(axis, keepdim=True) for begin, end in spans], axis)
    return x, torch.zeros_like(x, dtype=torch.int64)


def uneven(have: int, want: int) -> list[tuple[int, int]]:
    """Where torch's adaptive windows begin and end."""
    return [(i * have // want, -(-(i + 1) * have // want)) for i in range(want)]


def adaptive_avg_pool(x: Tensor, size: Sequence[int]) -> Tensor:
    """aten.adaptive_avg_pool1d and 2d: a mean, even windows, or else products with constant matrices, one an axis."""
    given = x.shape[2:]
    if all(s == 1 for s in size):
        return x.mean(dim=tuple(range(2, x.ndim)), keepdim=True)
    if all(g % s == 0 for g, s in zip(given, size, strict=True)):
        window = [g // s for g, s in zip(given, size, strict=True)]
        return torch.avg_pool1d(x, window) if len(window) == 1 else torch.ops.aten.avg_pool2d(x, window)
    for axis, (have, want) in enumerate(zip(given, size, strict=True), start=2):
        shares = torch.zeros(have, want)
        for i in range(want):
            begin, end = i * have // want, -(-(i + 1) * have // want)
            shares[begin:end, i] = 1 / (end - begin)
        x = (x.transpose(axis, -1) @ shares).transpose(axis, -1)
    return x


def avg_pool2d(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """aten.avg_pool2d with even windows alone: of sums of what counts, divided by how much that is."""
    kernel, padding = _pair(kernel), _pair(padding)
    stride = _pair(stride) if stride else kernel
    uneven = ceil_mode or (any(padding) and not count_include_pad)
    if divisor_override is not None or not uneven:
        return NotImplemented  # type: ignore[no-any-return]
    reach = [_beyond(n, *w) if ceil_mode else 0 for *w, n in zip(kernel, stride, padding, x.shape[2:], strict=True)]
    ones = torch.ones(1, 1, *x.shape[2:])
    for axis, p in enumerate(padding, start=2):
        x, ones = _padded(x, axis, p, p, 0.0), _padded(ones, axis, p, p, float(count_include_pad))
    for axis, beyond in enumerate(reach, start=2):
        x, ones = _padded(x, axis, 0, beyond, 0.0), _padded(ones, axis, 0, beyond, 0.0)
    return torch.nn.functional.avg_pool2d(x, kernel, stride) / torch.nn.functional.avg_pool2d(ones, kernel, stride)


def upsample_nearest(x: Tensor, size: Sequence[int] | None, scales: Sequence[float] | None) -> Tensor:
    """aten.upsample_nearest1d and 2d by whole numbers."""
    given = x.shape[2:]
    if size is not None:
        scales = [a / b for a, b in zip(size, given, strict=True)]
    if scales is None or any(s < 1 or s != int(s) for s in scales):
        return NotImplemented  # type: ignore[no-any-return]
    for axis, times in enumerate(map(int, scales), start=2):
        shape = [*x.shape[:axis], x.shape[axis] * times, *x.shape[axis + 1 :]]
        x = x.unsqueeze(axis + 1).expand(*x.shape[: axis + 1], times, *x.shape[axis + 1 :]).reshape(shape)
    return x


def upsample_linear(
    x: Tensor, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None
) -> Tensor:
    """aten.upsample_linear1d and bilinear2d, as products with constant matrices, one an axis."""
    given = x.shape[2:]
    assert size is not None or scales is not None
    wanted = size or [int(g * s) for g, s in zip(given, scales or (), strict=True)]
    ratios = [b / a for a, b in zip(wanted, given, strict=True)] if size else [1 / s for s in scales or ()]
    for axis, (have, want, ratio) in enumerate(zip(given, wanted, ratios, strict=True), start=2):
        x = (x.transpose(axis, -1) @ _tents(have, want, ratio, align_corners)).transpose(axis, -1)
    return x


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] = (0,),
    output_padding: Sequence[int] = (0,),
    groups: int = 1,
    dilation: Sequence[int] = (1,),
) -> Tensor:
    """aten.conv_transpose1d and 2d: zeros put between the values, then a convolution with the weights turned round."""
    axes = x.ndim - 2
    kernel, span = weight.shape[2:], math.prod(weight.shape[2:])
    stride, padding, more, dilation = (_all(v, axes) for v in (stride, padding, output_padding, dilation))
    for axis, (k, s, p, extra, d) in enumerate(zip(kernel, stride, padding, more, dilation, strict=True), start=2):
        length, edge = x.shape[axis], d * (k - 1) - p
        x = _spread(x, axis, s)
        # As much as torch has after the last value, of which the spreading left some already.
        x = _padded(x, axis, max(edge, 0), max(edge + extra - (s - 1), 0), 0.0)
        x = x.narrow(axis, max(-edge, 0), (length - 1) * s + 1 + 2 * edge + extra)
    turned = weight.flatten(2).index_select(2, torch.arange(span - 1, -1, -1)).reshape(weight.shape)
    swapped = turned.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    convolve = torch.nn.functional.conv1d if axes == 1 else torch.nn.functional.conv2d
    return convolve(x, swapped, bias, dilation=dilation, groups=groups)


def pixel_shuffle(x: Tensor, factor: int) -> Tensor:
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels // factor**2, factor, factor, height, width)
    return parts.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // factor**2, height * factor, width * factor)


def split(x: Tensor, size: int, dim: int = 0) -> list[Tensor]:
    length = x.shape[dim]
    return [x.narrow(dim, start, min(size, length - start)) for start in range(0, length, size)]


def split_with_sizes(x: Tensor, sizes: Sequence[int], dim: int = 0) -> list[Tensor]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [x.narrow(dim, start, size) for start, size in zip(starts, sizes, strict=True)]


def chunk(x: Tensor, chunks: int, dim: int = 0) -> list[Tensor]:
    return split(x, -(-x.shape[dim] // chunks), dim)


def _beyond(size: int, kernel: int, stride: int, padding: int) -> int:
    """How far past the padding the last window reaches in ceil_mode; it begins before the end of the values."""
    windows = -(-(size + 2 * padding - kernel) // stride) + 1
    if (windows - 1) * stride >= size + padding:
        windows -= 1
    return max((windows - 1) * stride + kernel - size - 2 * padding, 0)


def _tents(have: int, want: int, ratio: float, align_corners: bool) -> Tensor:
    """float32[have, want]: how much of each value goes into each new one."""
    places = torch.arange(want, dtype=torch.float32)
    if align_corners:
        places = places * ((have - 1) / max(want - 1, 1))
    else:
        places = ((places + 0.5) * ratio - 0.5).clamp(0, have - 1)
    distances = (places.unsqueeze(0) - torch.arange(have, dtype=torch.float32).unsqueeze(1)).abs()
    return (1 - distances).clamp(min=0)


def _spread(x: Tensor, axis: int, stride: int) -> Tensor:
    if stride == 1:
        return x
    shape = [*x.shape[:axis], x.shape[axis] * stride, *x.shape[axis + 1 :]]
    return _padded(x.unsqueeze(axis + 1), axis + 1, 0, stride - 1, 0.0).reshape(shape)


def _padded(x: Tensor, axis: int, before: int, after: int, value: float) -> Tensor:
    if not before and not after:
        return x
    return torch.constant_pad_nd(x, [0, 0] * (x.ndim - 1 - axis) + [before, after], value)


def _pair(values: Sequence[int]) -> list[int]:
    return _all(values, 2)


def _all(values: Sequence[int], axes: int) -> list[int]:
    return list(values) * axes if len(values) == 1 else list(values)
