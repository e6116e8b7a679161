"""Operators of torch in forms that it can take the backward of for any batch, or whose backward is a better graph."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from export import windows
from export.portable.graph import Size
from export.portable.recurrent import NAMESPACE

_ATEN = torch.ops.aten
# So many factors are multiplied one by one.
_FACTORS = 64


def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    batch: bool,
    m: float,
    eps: float,
    _: bool,
) -> Tensor:
    if mean is not None or not batch:
        return NotImplemented  # type: ignore[no-any-return]
    return torch.group_norm(x, x.shape[1], weight, bias, eps)


def _weight_norm(direction: Tensor, length: Tensor, dim: int = 0) -> Tensor:
    axes = [d for d in range(direction.ndim) if d != dim % direction.ndim]
    norm = direction.square().sum(axes, keepdim=True).sqrt()
    return direction * (length / norm)


def _bilinear(first: Tensor, second: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out, wide, other = weight.shape
    rows = first @ weight.permute(1, 0, 2).reshape(wide, out * other)
    result: Tensor = (rows.reshape(*first.shape[:-1], out, other) * second.unsqueeze(-2)).sum(-1)
    return result if bias is None else result + bias


def _adaptive_avg_pool(x: Tensor, size: Sequence[int]) -> Tensor:
    """Uneven windows as products with constant matrices, one an axis."""
    given = x.shape[2:]
    if all(s == 1 for s in size) or all(g % s == 0 for g, s in zip(given, size, strict=True)):
        return windows.adaptive_avg_pool(x, size)
    for axis, (have, want) in enumerate(zip(given, size, strict=True), start=2):
        rows = [[0.0] * have for _ in range(want)]
        for row, (begin, end) in zip(rows, windows.uneven(have, want), strict=True):
            row[begin:end] = [1 / (end - begin)] * (end - begin)
        x = (x.transpose(axis, -1) @ torch.tensor(rows).T).transpose(axis, -1)
    return x


def _adaptive_max_pool(x: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Uneven windows as rows of places, which a short window ends with its last place again: ties go to the first.

    The places of the largest are not given.
    """
    given = x.shape[2:]
    if all(g % s == 0 for g, s in zip(given, size, strict=True)):
        return windows.adaptive_max_pool(x, size)
    places = [[0]]
    for have, want in zip(given, size, strict=True):
        spans = windows.uneven(have, want)
        places = [[p * have + i for p in outer for i in range(*span)] for outer in places for span in spans]
    longest = max(map(len, places))
    rows = [p + p[-1:] * (longest - len(p)) for p in places]
    chosen = x.flatten(2).index_select(2, torch.tensor(rows).flatten())
    pooled = chosen.reshape(*x.shape[:2], len(rows), longest).max(3).values.reshape(*x.shape[:2], *size)
    return pooled, torch.zeros_like(pooled, dtype=torch.int64)


def _roll(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    if not dims or any(not isinstance(x.shape[d], int) for d in dims):
        return NotImplemented  # type: ignore[no-any-return]
    for shift, dim in zip(shifts, dims, strict=True):
        size = x.shape[dim]
        far = shift % size
        if far:
            x = torch.cat([x.narrow(dim, size - far, far), x.narrow(dim, 0, size - far)], dim)
    return x


def _pad(x: Tensor, padding: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
    """Padding with what is there already, joined from slices, an axis at a time."""
    if mode == "constant" or min(padding) < 0:
        return NotImplemented  # type: ignore[no-any-return]
    for i in range(len(padding) // 2):
        dim, (before, after) = x.ndim - 1 - i, padding[2 * i : 2 * i + 2]
        size = x.shape[dim]
        if mode == "circular":
            parts = [x.narrow(dim, size - before, before), x, x.narrow(dim, 0, after)]
        elif mode == "reflect":
            parts = [x.narrow(dim, 1, before).flip(dim), x, x.narrow(dim, size - after - 1, after).flip(dim)]
        else:
            wide = [[many if d == dim else -1 for d in range(x.ndim)] for many in (before, after)]
            parts = [x.narrow(dim, 0, 1).expand(wide[0]), x, x.narrow(dim, size - 1, 1).expand(wide[1])]
        x = torch.cat([part for part, many in zip(parts, (before, 1, after), strict=True) if many], dim)
    return x


def _prod(x: Tensor, dim: int, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    size: Size = x.shape[dim]
    if not isinstance(size, int) or not 0 < size <= _FACTORS or dtype is not None:
        return NotImplemented  # type: ignore[no-any-return]
    result = x.narrow(dim, 0, 1)
    for i in range(1, size):
        result = result * x.narrow(dim, i, 1)
    return result if keepdim else result.squeeze(dim)


def _diagonal(x: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
    first, second = dim1 % x.ndim, dim2 % x.ndim
    sizes: tuple[Size, Size] = (x.shape[first], x.shape[second])
    height, width = sizes
    if not isinstance(height, int) or not isinstance(width, int):
        return NotImplemented  # type: ignore[no-any-return]
    rest = [d for d in range(x.ndim) if d not in (first, second)]
    places = [i * width + i + offset for i in range(height) if 0 <= i + offset < width]
    return x.permute(*rest, first, second).flatten(-2).index_select(-1, torch.tensor(places))


def _distances(first: Tensor, second: Tensor, p: float = 2.0, _: int | None = None) -> Tensor:
    distances: Tensor = torch.linalg.vector_norm(first.unsqueeze(-2) - second.unsqueeze(-3), p, -1)
    return distances


def _avg_pool3d(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int] = (), padding: Sequence[int] = (0,), *rest: Any
) -> Tensor:
    """Along the first of three axes, as LocalResponseNorm has it."""
    if list(kernel[1:]) != [1, 1] or any(padding) or any(s != 1 for s in stride) or any(rest):
        return NotImplemented  # type: ignore[no-any-return]
    flat: Tensor = _ATEN.avg_pool2d(x.flatten(-2), [kernel[0], 1], [1, 1])
    return flat.reshape(*flat.shape[:-1], *x.shape[-2:])


def _embedding_bag(
    table: Tensor,
    words: Tensor,
    offsets: Tensor,
    by_frequency: bool = False,
    mode: int = 0,
    sparse: bool = False,
    shares: Tensor | None = None,
    last: bool = False,
    padding: int | None = None,
) -> Any:
    """Bags as they come from a matrix of words, all of one length; see export/capture.py for what else is refused."""
    size = _length(words)
    if by_frequency or last or size is None:
        return NotImplemented
    words, nothing = words.reshape(-1, size), words.new_empty(0)
    found = table[words]
    if shares is not None:
        found = found * shares.reshape(-1, size, 1)
    if padding is None or padding < 0:
        result = (found.sum(1), found.mean(1), found.max(1).values)[_MODES.index(mode)]
        return result, nothing, nothing, nothing
    counts = (words != padding).unsqueeze(2)
    if mode == _MAX:
        result = torch.where(counts, found, -math.inf).max(1).values
        result = torch.where(counts.any(1), result, 0.0)
    else:
        result = (found * counts).sum(1)
        result = result / counts.sum(1).clamp(min=1) if mode == _MEAN else result
    return result, nothing, nothing, nothing


_MODES = (_SUM, _MEAN, _MAX) = (0, 1, 2)


def _length(words: Tensor) -> int | None:
    """How many words every example has, where their number is a multiple of the batch."""
    count: Size = words.shape[0]
    if not isinstance(count, torch.SymInt):
        return None
    many, rest = count.node.expr.as_coeff_Mul()
    return int(many) if rest.is_Symbol else None


# What they give NotImplemented for, torch does.
FORMS: Mapping[Any, Callable[..., Any]] = {
    _ATEN.instance_norm.default: _instance_norm,
    _ATEN._weight_norm.default: _weight_norm,
    _ATEN.bilinear.default: _bilinear,
    _ATEN.adaptive_avg_pool1d.default: _adaptive_avg_pool,
    _ATEN.adaptive_avg_pool2d.default: _adaptive_avg_pool,
    _ATEN.adaptive_max_pool1d.default: _adaptive_max_pool,
    _ATEN.adaptive_max_pool2d.default: _adaptive_max_pool,
    _ATEN.upsample_nearest1d.vec: windows.upsample_nearest,
    _ATEN.upsample_nearest2d.vec: windows.upsample_nearest,
    _ATEN.upsample_linear1d.vec: windows.upsample_linear,
    _ATEN.upsample_bilinear2d.vec: windows.upsample_linear,
    _ATEN.roll.default: _roll,
    _ATEN.pad.default: _pad,
    _ATEN.prod.dim_int: _prod,
    _ATEN.diagonal.default: _diagonal,
    _ATEN.cdist.default: _distances,
    _ATEN._cdist_forward.default: _distances,
    _ATEN.avg_pool3d.default: _avg_pool3d,
    _ATEN.embedding_bag.default: _embedding_bag,
    _ATEN.embedding_bag.padding_idx: _embedding_bag,
}


# Torch's own forgets in a joint graph that the batch is free.
torch.library.define(f"{NAMESPACE}::pad", "(Tensor x, SymInt[] padding, Scalar value) -> Tensor")
PAD = torch.ops.sparsefleet.pad.default


def _padded_shape(x: Tensor, padding: Sequence[int], value: float) -> Tensor:
    sizes = list(x.shape)
    for i in range(len(padding) // 2):
        sizes[x.ndim - 1 - i] += padding[2 * i] + padding[2 * i + 1]
    return x.new_empty(sizes)


torch.library.register_fake(f"{NAMESPACE}::pad", _padded_shape)


def padded(x: Tensor, padding: Sequence[int], value: float = 0) -> Tensor:
    """aten.constant_pad_nd below its derivative: what it cuts off, as the backward of a padding does, is slices."""
    for i in range(len(padding) // 2):
        dim, (before, after) = x.ndim - 1 - i, padding[2 * i : 2 * i + 2]
        if before < 0 or after < 0:
            x = x.narrow(dim, max(-before, 0), x.shape[dim] + min(before, 0) + min(after, 0))
    more = [max(p, 0) for p in padding]
    return PAD(x, more, value) if any(more) else _ATEN.clone.default(x)  # type: ignore[no-any-return]
