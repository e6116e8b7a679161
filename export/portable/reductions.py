"""Sums, products of matrices, and what normalises along an axis."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from export.portable.arithmetic import as_type
from export.portable.graph import Graph, Value

_ATEN = torch.ops.aten
Rule = Callable[..., Any]


def _axes(x: Value, dims: int | Sequence[int] | None) -> list[int]:
    if isinstance(dims, int):
        return [dims % max(x.rank, 1)]
    return sorted(d % x.rank for d in dims) if dims else list(range(x.rank))


def _reduced(kind: str) -> Rule:
    def rule(g: Graph, out: Tensor, x: Value, dims: Any = None, keep: bool = False, **_: Any) -> str:
        name = as_type(g, x, out.dtype)
        if x.rank == 0:
            return name
        axes = _axes(x, dims)
        if kind in ("ReduceSum", "ReduceMean") and all(_is_one(x.shape[a]) for a in axes):
            return g.reshape(name, tuple(out.shape)) if out.ndim else g.op("Squeeze", name, g.ints(*axes))
        return g.op(kind, name, g.ints(*axes), keepdims=int(keep))

    return rule


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _arg(kind: str) -> Rule:
    def rule(g: Graph, out: Tensor, x: Value, dim: int | None = None, keep: bool = False) -> str:
        if dim is None:
            return g.op("Squeeze", g.op(kind, g.reshape(x.name, (-1,)), axis=0, keepdims=0))
        return g.op(kind, as_type(g, x, x.dtype), axis=dim % x.rank, keepdims=int(keep))

    return rule


def _with_places(values: str, places: str) -> Rule:
    def rule(g: Graph, out: Any, x: Value, dim: int, keep: bool = False) -> tuple[str, str]:
        axis = dim % x.rank
        found = g.op(values, x.name, g.ints(axis), keepdims=int(keep))
        return found, g.op(places, x.name, axis=axis, keepdims=int(keep))

    return rule


def _any(g: Graph, out: Tensor, x: Value, dim: Any = None, keep: bool = False) -> str:
    whole = as_type(g, x, torch.int32) if x.dtype == torch.bool else g.cast(as_type(g, x, torch.bool), torch.int32)
    return g.cast(g.op("ReduceMax", whole, g.ints(*_axes(x, dim)), keepdims=int(keep)), torch.bool)


def _variance(g: Graph, out: Tensor, x: Value, dims: Any = None, *, correction: Any = 1, keepdim: bool = False) -> str:
    return _mean_and_variance(g, x, dims, correction, keepdim)[1]


def _var_mean(g: Graph, out: Any, x: Value, dims: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Any:
    mean, variance = _mean_and_variance(g, x, dims, correction, keepdim)
    return variance, mean


def _mean_and_variance(g: Graph, x: Value, dims: Any, correction: Any, keep: bool) -> tuple[str, str]:
    axes = _axes(x, dims)
    mean = g.op("ReduceMean", x.name, g.ints(*axes), keepdims=1)
    off = g.op("Sub", x.name, mean)
    total = g.op("ReduceSum", g.op("Mul", off, off), g.ints(*axes), keepdims=int(keep))
    count: Any = 1
    for axis in axes:
        count = count * x.shape[axis]
    divisor = g.number(count - (1 if correction is None else correction), x.dtype)
    return (mean if keep else g.op("Squeeze", mean, g.ints(*axes))), g.op("Div", total, divisor)


def _norm(g: Graph, out: Tensor, x: Value, order: float = 2, dims: Any = None, keep: bool = False, **_: Any) -> str:
    kind = {1: "ReduceL1", 2: "ReduceL2"}[int(order)]
    return g.op(kind, x.name, g.ints(*_axes(x, dims)), keepdims=int(keep))


def _cumsum(g: Graph, out: Tensor, x: Value, dim: int, **_: Any) -> str:
    return g.op("CumSum", as_type(g, x, out.dtype), g.constant(dim % x.rank, torch.int64))


def _softmax(kind: str) -> Rule:
    return lambda g, out, x, dim, half=False: g.op(kind, x.name, axis=dim % x.rank)


def _addmm(g: Graph, out: Tensor, bias: Value, a: Value, b: Value, *, beta: Any = 1, alpha: Any = 1) -> str:
    return g.op("Gemm", a.name, b.name, bias.name, alpha=float(alpha), beta=float(beta))


def _matmul(g: Graph, out: Tensor, a: Value, b: Value) -> str:
    return g.op("MatMul", a.name, b.name)


def _mm(g: Graph, out: Tensor, a: Value, b: Value) -> str:
    return g.op("Gemm", a.name, b.name)


def _baddbmm(g: Graph, out: Tensor, x: Value, a: Value, b: Value, *, beta: Any = 1, alpha: Any = 1) -> str:
    product = g.op("MatMul", a.name, b.name)
    product = product if alpha == 1 else g.op("Mul", product, g.number(alpha, out.dtype))
    return (
        product if beta == 0 else g.op("Add", product, x.name if beta == 1 else g.op("Mul", x.name, g.constant(beta)))
    )


RULES: Mapping[Any, Rule] = {
    _ATEN.sum.dim_IntList: _reduced("ReduceSum"),
    _ATEN.sum.default: _reduced("ReduceSum"),
    _ATEN.mean.dim: _reduced("ReduceMean"),
    _ATEN.mean.default: _reduced("ReduceMean"),
    _ATEN.amax.default: _reduced("ReduceMax"),
    _ATEN.amin.default: _reduced("ReduceMin"),
    _ATEN.max.default: _reduced("ReduceMax"),
    _ATEN.min.default: _reduced("ReduceMin"),
    _ATEN.prod.default: _reduced("ReduceProd"),
    _ATEN.prod.dim_int: _reduced("ReduceProd"),
    _ATEN.argmax.default: _arg("ArgMax"),
    _ATEN.argmin.default: _arg("ArgMin"),
    _ATEN.max.dim: _with_places("ReduceMax", "ArgMax"),
    _ATEN.min.dim: _with_places("ReduceMin", "ArgMin"),
    _ATEN.any.default: _any,
    _ATEN.any.dim: _any,
    _ATEN.any.dims: _any,
    _ATEN.var.correction: _variance,
    _ATEN.var_mean.correction: _var_mean,
    _ATEN.linalg_vector_norm.default: _norm,
    _ATEN.cumsum.default: _cumsum,
    _ATEN._softmax.default: _softmax("Softmax"),
    _ATEN._log_softmax.default: _softmax("LogSoftmax"),
    _ATEN.addmm.default: _addmm,
    _ATEN.mm.default: _mm,
    _ATEN.bmm.default: _matmul,
    _ATEN.baddbmm.default: _baddbmm,
}
