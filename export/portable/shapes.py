"""Sizes and places: views, slices, joins, constants, and what reads or writes at indices."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from export.portable.arithmetic import as_type
from export.portable.forms import PAD
from export.portable.graph import Graph, Size, UnwritableError, Value

_ATEN = torch.ops.aten
Rule = Callable[..., Any]
_END = 2**63 - 1


def _view(g: Graph, out: Tensor, x: Value, *_: Any) -> str:
    return x.name if _equal(x.shape, out.shape) else g.reshape(x.name, tuple(out.shape))


def _permute(g: Graph, out: Tensor, x: Value, order: Sequence[int]) -> str:
    return g.transpose(x.name, *(d % x.rank for d in order))


def _transpose(g: Graph, out: Tensor, x: Value, first: int = 0, second: int = 1) -> str:
    order = list(range(x.rank))
    order[first], order[second] = order[second], order[first]
    return g.transpose(x.name, *order)


def _expand(g: Graph, out: Tensor, x: Value, *_: Any, **__: Any) -> str:
    if _equal(x.shape, out.shape):
        return x.name
    given = (1,) * (out.ndim - x.rank) + x.shape
    # A one takes the size that is there, so that only what grows needs to be known.
    return g.op(
        "Expand", x.name, g.sizes([1 if _same_size(a, b) else b for a, b in zip(given, out.shape, strict=True)])
    )


def _slice(g: Graph, out: Tensor, x: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> str:
    if _equal(x.shape, out.shape):
        return x.name
    axis = g.ints(dim % x.rank)
    return g.op("Slice", x.name, g.sizes([start or 0]), g.sizes([_END if end is None else end]), axis, g.ints(step))


def _select(g: Graph, out: Tensor, x: Value, dim: int, index: Any) -> str:
    dim %= x.rank
    if not isinstance(index, int):
        raise UnwritableError("a choice of one by an index that depends on the batch")
    part = g.op("Slice", x.name, g.ints(index), g.ints(_END if index == -1 else index + 1), g.ints(dim), g.ints(1))
    return g.reshape(part, tuple(out.shape)) if out.ndim else g.op("Squeeze", part, g.ints(dim))


def _cat(g: Graph, out: Tensor, parts: Sequence[Value], dim: int = 0) -> str:
    kept = [as_type(g, p, out.dtype) for p in parts if p.shape != (0,)]
    return kept[0] if len(kept) == 1 else g.op("Concat", *kept, axis=dim % out.ndim)


def _stack(g: Graph, out: Tensor, parts: Sequence[Value], dim: int = 0) -> str:
    axis = g.ints(dim % out.ndim)
    return g.op("Concat", *(g.op("Unsqueeze", as_type(g, p, out.dtype), axis) for p in parts), axis=dim % out.ndim)


def _split(g: Graph, out: Sequence[Tensor], x: Value, sizes: Sequence[int], dim: int = 0) -> tuple[str, ...]:
    if len(out) == 1:
        return (x.name,)
    return g.ops("Split", (x.name, g.ints(*(int(o.shape[dim]) for o in out))), len(out), axis=dim % x.rank)


def _flip(g: Graph, out: Tensor, x: Value, dims: Sequence[int]) -> str:
    n = len(dims)
    axes = g.ints(*(d % x.rank for d in dims))
    return g.op("Slice", x.name, g.ints(*[-1] * n), g.ints(*[-_END] * n), axes, g.ints(*[-1] * n))


def _repeat(g: Graph, out: Tensor, x: Value, times: Sequence[Size]) -> str:
    wide = g.reshape(x.name, (1,) * (len(times) - x.rank) + x.shape) if len(times) > x.rank else x.name
    return g.op("Tile", wide, g.sizes(times))


def _pad(g: Graph, out: Tensor, x: Value, padding: Sequence[int], value: float = 0) -> str:
    # Torch's pairs begin at the last axis; negative ones cut off.
    before, after = [0] * x.rank, [0] * x.rank
    for i in range(len(padding) // 2):
        before[x.rank - 1 - i], after[x.rank - 1 - i] = padding[2 * i], padding[2 * i + 1]
    return g.op("Pad", x.name, g.ints(*before, *after), g.number(value, out.dtype))


def _slice_scatter(
    g: Graph, out: Tensor, x: Value, part: Value, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> str:
    if _equal(x.shape, part.shape):
        return part.name
    dim %= x.rank
    size = x.shape[dim]
    start, end = start or 0, size if end is None or (isinstance(size, int) and end > size) else end
    if not all(isinstance(v, int) for v in (start, end, size)):
        raise UnwritableError("a part put in place along the batch")
    start, end = (v + size if v < 0 else v for v in (start, end))
    return _put(g, x, part.name, dim, list(range(start, end, step)))


def _select_scatter(g: Graph, out: Tensor, x: Value, part: Value, dim: int, index: int) -> str:
    dim %= x.rank
    size = x.shape[dim]
    if not isinstance(size, int):
        raise UnwritableError("a part put in place along the batch")
    return _put(g, x, g.op("Unsqueeze", part.name, g.ints(dim)), dim, [index % size])


def _put(g: Graph, x: Value, part: str, dim: int, places: list[int]) -> str:
    """`x` with `part` at these places of one axis: joined from what lies before, the part, and what lies after."""
    size = int(x.shape[dim])
    if places == list(range(places[0], places[-1] + 1)):
        parts = [part]
        if places[0] > 0:
            parts.insert(0, g.op("Slice", x.name, g.ints(0), g.ints(places[0]), g.ints(dim)))
        if places[-1] + 1 < size:
            parts.append(g.op("Slice", x.name, g.ints(places[-1] + 1), g.ints(_END), g.ints(dim)))
        return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=dim)
    # Every step-th: choose rows from both, one after the other.
    both = g.op("Concat", x.name, part, axis=dim)
    order = list(range(size))
    for k, place in enumerate(places):
        order[place] = size + k
    return g.op("Gather", both, g.ints(*order), axis=dim)


def _index_select(g: Graph, out: Tensor, x: Value, dim: int, index: Value) -> str:
    return g.op("Gather", x.name, index.name, axis=dim % x.rank)


def _embedding(g: Graph, out: Tensor, table: Value, index: Value, *_: Any) -> str:
    return g.op("Gather", table.name, index.name, axis=0)


def _gather(g: Graph, out: Tensor, x: Value, dim: int, index: Value, **_: Any) -> str:
    return g.op("GatherElements", x.name, index.name, axis=dim % x.rank)


def _scatter(g: Graph, out: Tensor, x: Value, dim: int, index: Value, source: Any) -> str:
    if not isinstance(source, Value):
        source = Value(g.op("Expand", g.number(source, out.dtype), g.op("Shape", index.name)), index.shape, out.dtype)
    return g.op("ScatterElements", x.name, index.name, source.name, axis=dim % x.rank)


def _scatter_add(g: Graph, out: Tensor, x: Value, dim: int, index: Value, source: Value) -> str:
    return g.op("ScatterElements", x.name, index.name, source.name, axis=dim % x.rank, reduction="add")


def _index(g: Graph, out: Tensor, x: Value, indices: Sequence[Value | None]) -> str:
    """x[:, a, b]: by GatherND after the indexed axes were put first, or by Gather where there is one."""
    axes = [i for i, index in enumerate(indices) if index is not None]
    chosen = [index for index in indices if index is not None]
    if any(index.dtype == torch.bool for index in chosen):
        raise UnwritableError("a choice by a mask, whose size depends on its values; use torch.where")
    if len(axes) == 1:
        return g.op("Gather", x.name, as_type(g, chosen[0], torch.int64), axis=axes[0])
    if axes != list(range(axes[0], axes[0] + len(axes))):
        raise UnwritableError("an index with a gap between the indexed axes")
    rest = [d for d in range(x.rank) if d not in axes]
    first = g.transpose(x.name, *axes, *rest)
    found = g.op("GatherND", first, _stacked(g, chosen))
    # Torch puts what is indexed where the first of the axes was.
    wide = max(index.rank for index in chosen)
    before, after = axes[0], out.ndim - axes[0] - wide
    return g.transpose(found, *range(wide, wide + before), *range(wide), *range(wide + before, wide + before + after))


def _index_put(
    g: Graph, out: Tensor, x: Value, indices: Sequence[Value | None], values: Value, accumulate: bool = False
) -> str:
    axes = [i for i, index in enumerate(indices) if index is not None]
    chosen = [index for index in indices if index is not None]
    if any(index.dtype == torch.bool for index in chosen):
        raise UnwritableError("values put in place by a mask; use torch.where")
    rest = [d for d in range(x.rank) if d not in axes]
    first = g.transpose(x.name, *axes, *rest)
    places = _stacked(g, chosen)
    wide = max(index.rank for index in chosen)
    if values.rank < wide + len(rest) or axes[0] != 0:
        if axes[0] != 0 and values.rank == wide + len(rest):
            values = Value(_indexed_first(g, values, axes[0], wide), values.shape, values.dtype)
        elif axes[0] != 0:
            raise UnwritableError("values put in place along a later axis")
        else:
            shape = g.op("Concat", g.op("Shape", places, end=-1), g.sizes([x.shape[d] for d in rest]), axis=0)
            values = Value(g.op("Expand", values.name, shape), values.shape, values.dtype)
    reduction = {"reduction": "add"} if accumulate else {}
    put = g.op("ScatterND", first, places, values.name, **reduction)
    order = [0] * x.rank
    for place, axis in enumerate((*axes, *rest)):
        order[axis] = place
    return g.transpose(put, *order)


def _indexed_first(g: Graph, values: Value, before: int, wide: int) -> str:
    order = (*range(before, before + wide), *range(before), *range(before + wide, values.rank))
    return g.transpose(values.name, *order)


def _stacked(g: Graph, indices: Sequence[Value]) -> str:
    """int64[..., k] from k indices of shapes that broadcast."""
    names = [as_type(g, index, torch.int64) for index in indices]
    if len(names) > 1 and any(not _equal(i.shape, indices[0].shape) for i in indices):
        total = names[0]
        for name in names[1:]:
            total = g.op("Add", total, name)
        shape = g.op("Shape", total)
        names = [g.op("Expand", name, shape) for name in names]
    axis = g.ints(max(i.rank for i in indices))
    parts = [g.op("Unsqueeze", name, axis) for name in names]
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=-1)


def _full(g: Graph, out: Tensor, size: Any, value: Any = 0, **_: Any) -> str:
    return _filled(g, out, value)


def _filled(g: Graph, out: Tensor, value: Any) -> str:
    scalar = g.number(value, out.dtype)
    return g.op("Expand", scalar, g.sizes(tuple(out.shape))) if out.ndim else scalar


def _copy(g: Graph, out: Tensor, x: Value, source: Value, *_: Any) -> str:
    return _expand(g, out, Value(as_type(g, source, out.dtype), source.shape, out.dtype))


def _sort(g: Graph, out: Any, x: Value, dim: int = -1, descending: bool = False) -> tuple[str, ...]:
    size = x.shape[dim]
    if not isinstance(size, int):
        raise UnwritableError("an order of the examples")
    return _topk(g, out, x, size, dim, descending)


def _sort_stable(g: Graph, out: Any, x: Value, *, stable: Any, dim: int = -1, descending: bool = False) -> Any:
    return _sort(g, out, x, dim, descending)


def _topk(
    g: Graph, out: Any, x: Value, k: int, dim: int = -1, largest: bool = True, sorted_too: bool = True
) -> tuple[str, ...]:
    return g.ops("TopK", (x.name, g.ints(k)), 2, axis=dim % x.rank, largest=int(largest), sorted=1)


def _empty(g: Graph, out: Tensor, *_: Any, **__: Any) -> str:
    return _filled(g, out, 0)


def _scalar(g: Graph, out: Tensor, value: Any, **_: Any) -> str:
    return g.number(value, out.dtype)


def _arange(g: Graph, out: Tensor, *bounds: Any, **_: Any) -> str:
    start, end, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    if all(isinstance(v, int | float) for v in (start, end, step)):
        return g.constant(torch.arange(start, end, step, dtype=out.dtype).numpy(), out.dtype)
    return g.op("Range", *(g.number(v, out.dtype) for v in (start, end, step)))


def _equal(one: Sequence[Size], other: Sequence[Size]) -> bool:
    return len(one) == len(other) and all(_same_size(a, b) for a, b in zip(one, other, strict=True))


def _same_size(a: Size, b: Size) -> bool:
    """Whether two sizes are the same for every batch; without asking torch, which would fix the batch."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    if isinstance(a, int) or isinstance(b, int):
        return False
    return bool(a.node.expr == b.node.expr)


RULES: Mapping[Any, Rule] = {
    _ATEN.view.default: _view,
    _ATEN._unsafe_view.default: _view,
    _ATEN.reshape.default: _view,
    _ATEN.unsqueeze.default: _view,
    _ATEN.squeeze.default: _view,
    _ATEN.squeeze.dim: _view,
    _ATEN.squeeze.dims: _view,
    _ATEN.permute.default: _permute,
    _ATEN.transpose.int: _transpose,
    _ATEN.t.default: _transpose,
    _ATEN.expand.default: _expand,
    _ATEN.slice.Tensor: _slice,
    _ATEN.select.int: _select,
    _ATEN.cat.default: _cat,
    _ATEN.stack.default: _stack,
    _ATEN.split_with_sizes.default: _split,
    _ATEN.flip.default: _flip,
    _ATEN.repeat.default: _repeat,
    PAD: _pad,
    _ATEN.slice_scatter.default: _slice_scatter,
    _ATEN.select_scatter.default: _select_scatter,
    _ATEN.index_select.default: _index_select,
    _ATEN.embedding.default: _embedding,
    _ATEN.gather.default: _gather,
    _ATEN.scatter.value: _scatter,
    _ATEN.scatter.src: _scatter,
    _ATEN.scatter_add.default: _scatter_add,
    _ATEN.index.Tensor: _index,
    _ATEN.index_put.default: _index_put,
    _ATEN._unsafe_index_put.default: _index_put,
    _ATEN._unsafe_index.Tensor: _index,
    _ATEN.full.default: _full,
    _ATEN.full_like.default: _full,
    _ATEN.zeros_like.default: _empty,
    _ATEN.empty.memory_format: _empty,
    _ATEN.empty_permuted.default: _empty,
    _ATEN.new_empty_strided.default: _empty,
    _ATEN.scalar_tensor.default: _scalar,
    _ATEN.copy.default: _copy,
    _ATEN.sort.default: _sort,
    _ATEN.sort.stable: _sort_stable,
    _ATEN.topk.default: _topk,
    _ATEN.arange.start_step: _arange,
    _ATEN.arange.default: _arange,
    _ATEN.arange.start: _arange,
}
