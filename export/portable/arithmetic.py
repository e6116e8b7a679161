"""Element by element: arithmetic, comparisons, activations and their slopes."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from export.portable.graph import Graph, Value

_ATEN = torch.ops.aten
Rule = Callable[..., Any]

# Times any normal float32 above zero this is at least 1, so that HardSigmoid makes a step of it.
_HUGE = 3e38


def as_type(g: Graph, value: Any, dtype: torch.dtype) -> str:
    """The value's name after a cast to `dtype` where it is of another; numbers become constants."""
    if not isinstance(value, Value):
        return g.number(value, dtype)
    return value.name if value.dtype == dtype else g.cast(value.name, dtype)


def step(g: Graph, name: str) -> str:
    """1 where a float32 value is above zero, else 0: in one pass, where a comparison and a cast take three."""
    return g.op("HardSigmoid", name, alpha=_HUGE, beta=0.0)


def _unary(kind: str) -> Rule:
    return lambda g, out, x, *_, **__: g.op(kind, as_type(g, x, out.dtype))


def _binary(kind: str) -> Rule:
    def rule(g: Graph, out: Tensor, x: Any, y: Any, *, alpha: Any = 1, **_: Any) -> str:
        first, second = as_type(g, x, out.dtype), as_type(g, y, out.dtype)
        if alpha != 1:
            second = g.op("Mul", second, g.number(alpha, out.dtype))
        if kind == "Mul" and isinstance(y, Value) and x is y:
            return g.op("Mul", first, first)
        return g.op(kind, first, second)

    return rule


def _swapped(rule: Rule) -> Rule:
    return lambda g, out, x, y, **options: rule(g, out, y, x, **options)


def _compared(kind: str, negated: bool = False) -> Rule:
    def rule(g: Graph, out: Tensor, x: Value, y: Any) -> str:
        common = torch.result_type(
            *(torch.empty(0, dtype=v.dtype) if isinstance(v, Value) else v for v in (x, _plain(y)))
        )
        if common == torch.bool and kind != "Equal":
            common = torch.int32
        found = g.op(kind, as_type(g, x, common), as_type(g, y, common))
        return g.op("Not", found) if negated else found

    return rule


def _plain(value: Any) -> Any:
    """A number in place of one that depends on the batch, for questions of type."""
    if isinstance(value, torch.SymInt):
        return 1
    return 1.0 if isinstance(value, torch.SymFloat) else value


def _logical(kind: str) -> Rule:
    return lambda g, out, *values: g.op(kind, *(as_type(g, v, torch.bool) for v in values))


def _bitwise(kind: str, *, whole: str) -> Rule:
    def rule(g: Graph, out: Tensor, *values: Any) -> str:
        if out.dtype == torch.bool:
            return g.op(kind, *(as_type(g, v, torch.bool) for v in values))
        return g.op(whole, *(as_type(g, v, out.dtype) for v in values))

    return rule


def _divided(g: Graph, out: Tensor, x: Any, y: Any, *, rounding_mode: str | None = None) -> str:
    whole = rounding_mode is not None and not out.dtype.is_floating_point
    kind = torch.float32 if whole else out.dtype
    quotient = g.op("Div", as_type(g, x, kind), as_type(g, y, kind))
    if rounding_mode is None:
        return quotient
    if rounding_mode == "floor":
        quotient = g.op("Floor", quotient)
    elif not whole:
        quotient = g.op("Mul", g.op("Sign", quotient), g.op("Floor", g.op("Abs", quotient)))
    return g.cast(quotient, out.dtype) if whole else quotient


def _remainder(g: Graph, out: Tensor, x: Any, y: Any) -> str:
    first, second = as_type(g, x, out.dtype), as_type(g, y, out.dtype)
    if not out.dtype.is_floating_point:
        return g.op("Mod", first, second)
    return g.op("Sub", first, g.op("Mul", second, g.op("Floor", g.op("Div", first, second))))


def _truncated_remainder(g: Graph, out: Tensor, x: Any, y: Any) -> str:
    return g.op("Mod", as_type(g, x, out.dtype), as_type(g, y, out.dtype), fmod=1)


def _power(g: Graph, out: Tensor, x: Any, exponent: Any) -> str:
    base = as_type(g, x, out.dtype)
    if isinstance(exponent, int | float):
        if exponent == 1:
            return base
        if exponent == 2:
            return g.op("Mul", base, base)
        if exponent == 3:
            return g.op("Mul", base, g.op("Mul", base, base))
        if exponent == 0.5:
            return g.op("Sqrt", base)
        if exponent == -1:
            return g.op("Reciprocal", base)
    return g.op("Pow", base, as_type(g, exponent, out.dtype))


def _clamp(g: Graph, out: Tensor, x: Value, low: Any = None, high: Any = None) -> str:
    result = as_type(g, x, out.dtype)
    if isinstance(low, Value) or isinstance(high, Value):
        result = result if low is None else g.op("Max", result, as_type(g, low, out.dtype))
        return result if high is None else g.op("Min", result, as_type(g, high, out.dtype))
    bounds = ["" if bound is None else g.number(bound, out.dtype) for bound in (low, high)]
    return g.op("Clip", result, *(bounds if bounds[1] else bounds[:1]))


def _hardtanh(g: Graph, out: Tensor, x: Value, low: float = -1.0, high: float = 1.0) -> str:
    return _clamp(g, out, x, low, high)


def _where(g: Graph, out: Tensor, condition: Value, x: Any, y: Any) -> str:
    return g.op("Where", as_type(g, condition, torch.bool), as_type(g, x, out.dtype), as_type(g, y, out.dtype))


def _threshold_backward(g: Graph, out: Tensor, gradient: Value, x: Value, threshold: float) -> str:
    """relu's slope times the gradient; `x` is relu's result, or what went into it."""
    above = x.name if threshold == 0 else g.op("Sub", x.name, g.number(threshold, out.dtype))
    return g.op("Mul", gradient.name, step(g, above))


def _hardtanh_backward(g: Graph, out: Tensor, gradient: Value, x: Value, low: float, high: float) -> str:
    # Between the bounds, and nowhere else, both distances of the result from them are above zero.
    y = _hardtanh(g, out, x, low, high)
    above = y if low == 0 else g.op("Sub", y, g.number(low, out.dtype))
    below = g.op("Sub", g.number(high, out.dtype), y)
    return g.op("Mul", gradient.name, step(g, g.op("Mul", above, below)))


def _hardsigmoid(g: Graph, out: Tensor, x: Value) -> str:
    return g.op("HardSigmoid", x.name, alpha=1 / 6, beta=0.5)


def _inside(g: Graph, out: Tensor, x: Value) -> str:
    """1 where hardsigmoid has a slope, else 0."""
    y = _hardsigmoid(g, out, x)
    return step(g, g.op("Mul", y, g.op("Sub", g.constant(1.0), y)))


def _hardsigmoid_backward(g: Graph, out: Tensor, gradient: Value, x: Value) -> str:
    return g.op("Mul", g.op("Mul", gradient.name, g.constant(1 / 6)), _inside(g, out, x))


def _hardswish(g: Graph, out: Tensor, x: Value) -> str:
    return g.op("Mul", x.name, _hardsigmoid(g, out, x))


def _hardswish_backward(g: Graph, out: Tensor, gradient: Value, x: Value) -> str:
    sixth = g.op("Mul", g.op("Mul", x.name, g.constant(1 / 6)), _inside(g, out, x))
    return g.op("Mul", gradient.name, g.op("Add", _hardsigmoid(g, out, x), sixth))


def _leaky_relu_backward(g: Graph, out: Tensor, gradient: Value, x: Value, slope: float, _: bool) -> str:
    positive = g.op("Mul", step(g, x.name), g.constant(1 - slope))
    return g.op("Mul", gradient.name, g.op("Add", positive, g.constant(slope)))


def _leaky_relu(g: Graph, out: Tensor, x: Value, slope: float = 0.01) -> str:
    return g.op("LeakyRelu", x.name, alpha=slope)


def _elu(g: Graph, out: Tensor, x: Value, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> str:
    below = g.op("Clip", x.name, "", g.constant(0.0))
    if input_scale != 1:
        below = g.op("Mul", below, g.constant(input_scale))
    curve = g.op("Mul", g.op("Sub", g.op("Exp", below), g.constant(1.0)), g.constant(alpha))
    both = g.op("Add", g.op("Relu", x.name), curve)
    return both if scale == 1 else g.op("Mul", both, g.constant(scale))


def _gelu(g: Graph, out: Tensor, x: Value, *, approximate: str = "none") -> str:
    half = g.op("Mul", x.name, g.constant(0.5))
    if approximate == "none":
        curve = g.op("Erf", g.op("Mul", x.name, g.constant(math.sqrt(0.5))))
    else:
        cubed = g.op("Mul", x.name, g.op("Mul", x.name, x.name))
        inner = g.op("Add", x.name, g.op("Mul", cubed, g.constant(0.044715)))
        curve = g.op("Tanh", g.op("Mul", inner, g.constant(math.sqrt(2 / math.pi))))
    return g.op("Mul", half, g.op("Add", curve, g.constant(1.0)))


def _log1p(g: Graph, out: Tensor, x: Value) -> str:
    """log(1 + x), also for x so small that 1 + x is 1: by Kahan's correction, u = 1 + x, log(u) * x / (u - 1).

    Goldberg, "What Every Computer Scientist Should Know About Floating-Point Arithmetic" (1991), theorem 4.
    """
    one = g.constant(1.0, out.dtype)
    u = g.op("Add", x.name, one)
    less = g.op("Sub", u, one)
    same = g.op("Equal", less, g.constant(0.0, out.dtype))
    ratio = g.op("Div", x.name, g.op("Where", same, one, less))
    return g.op("Where", same, x.name, g.op("Mul", g.op("Log", u), ratio))


def _expm1(g: Graph, out: Tensor, x: Value) -> str:
    # 2 tanh(x / 2) / (1 - tanh(x / 2)), which does not cancel near zero.
    half = g.op("Tanh", g.op("Mul", x.name, g.constant(0.5)))
    return g.op("Div", g.op("Add", half, half), g.op("Sub", g.constant(1.0), half))


def _rsqrt(g: Graph, out: Tensor, x: Value) -> str:
    return g.op("Reciprocal", g.op("Sqrt", as_type(g, x, out.dtype)))


def _cast(g: Graph, out: Tensor, x: Value, *_: Any, **__: Any) -> str:
    return as_type(g, x, out.dtype)


def _same(g: Graph, out: Any, x: Value, *_: Any, **__: Any) -> str:
    return x.name


RULES: Mapping[Any, Rule] = {
    _ATEN.abs.default: _unary("Abs"),
    _ATEN.neg.default: _unary("Neg"),
    _ATEN.exp.default: _unary("Exp"),
    _ATEN.log.default: _unary("Log"),
    _ATEN.log1p.default: _log1p,
    _ATEN.expm1.default: _expm1,
    _ATEN.sqrt.default: _unary("Sqrt"),
    _ATEN.rsqrt.default: _rsqrt,
    _ATEN.reciprocal.default: _unary("Reciprocal"),
    _ATEN.sin.default: _unary("Sin"),
    _ATEN.cos.default: _unary("Cos"),
    _ATEN.tan.default: _unary("Tan"),
    _ATEN.atan.default: _unary("Atan"),
    _ATEN.asin.default: _unary("Asin"),
    _ATEN.acos.default: _unary("Acos"),
    _ATEN.sinh.default: _unary("Sinh"),
    _ATEN.cosh.default: _unary("Cosh"),
    _ATEN.tanh.default: _unary("Tanh"),
    _ATEN.sigmoid.default: _unary("Sigmoid"),
    _ATEN.relu.default: _unary("Relu"),
    _ATEN.erf.default: _unary("Erf"),
    _ATEN.floor.default: _unary("Floor"),
    _ATEN.ceil.default: _unary("Ceil"),
    _ATEN.round.default: _unary("Round"),
    _ATEN.sign.default: _unary("Sign"),
    _ATEN.isnan.default: lambda g, out, x: g.op("IsNaN", x.name),
    _ATEN.isinf.default: lambda g, out, x: g.op("IsInf", x.name),
    _ATEN.add.Tensor: _binary("Add"),
    _ATEN.add.Scalar: _binary("Add"),
    _ATEN.sub.Tensor: _binary("Sub"),
    _ATEN.sub.Scalar: _binary("Sub"),
    _ATEN.rsub.Tensor: _swapped(_binary("Sub")),
    _ATEN.rsub.Scalar: _swapped(_binary("Sub")),
    _ATEN.mul.Tensor: _binary("Mul"),
    _ATEN.mul.Scalar: _binary("Mul"),
    _ATEN.div.Tensor: _divided,
    _ATEN.div.Scalar: _divided,
    _ATEN.div.Tensor_mode: _divided,
    _ATEN.div.Scalar_mode: _divided,
    _ATEN.remainder.Tensor: _remainder,
    _ATEN.remainder.Scalar: _remainder,
    _ATEN.fmod.Tensor: _truncated_remainder,
    _ATEN.fmod.Scalar: _truncated_remainder,
    _ATEN.pow.Tensor_Scalar: _power,
    _ATEN.pow.Tensor_Tensor: _power,
    _ATEN.pow.Scalar: _power,
    _ATEN.maximum.default: _binary("Max"),
    _ATEN.minimum.default: _binary("Min"),
    _ATEN.clamp.default: _clamp,
    _ATEN.hardtanh.default: _hardtanh,
    _ATEN.clamp.Tensor: _clamp,
    _ATEN.clamp_min.default: _clamp,
    _ATEN.eq.Tensor: _compared("Equal"),
    _ATEN.eq.Scalar: _compared("Equal"),
    _ATEN.ne.Tensor: _compared("Equal", negated=True),
    _ATEN.ne.Scalar: _compared("Equal", negated=True),
    _ATEN.lt.Tensor: _compared("Less"),
    _ATEN.lt.Scalar: _compared("Less"),
    _ATEN.le.Tensor: _compared("LessOrEqual"),
    _ATEN.le.Scalar: _compared("LessOrEqual"),
    _ATEN.gt.Tensor: _compared("Greater"),
    _ATEN.gt.Scalar: _compared("Greater"),
    _ATEN.ge.Tensor: _compared("GreaterOrEqual"),
    _ATEN.ge.Scalar: _compared("GreaterOrEqual"),
    _ATEN.logical_not.default: _logical("Not"),
    _ATEN.logical_and.default: _logical("And"),
    _ATEN.logical_or.default: _logical("Or"),
    _ATEN.logical_xor.default: _logical("Xor"),
    _ATEN.bitwise_not.default: _bitwise("Not", whole="BitwiseNot"),
    _ATEN.bitwise_and.Tensor: _bitwise("And", whole="BitwiseAnd"),
    _ATEN.bitwise_or.Tensor: _bitwise("Or", whole="BitwiseOr"),
    _ATEN.where.self: _where,
    _ATEN.threshold_backward.default: _threshold_backward,
    _ATEN.hardtanh_backward.default: _hardtanh_backward,
    _ATEN.hardsigmoid.default: _hardsigmoid,
    _ATEN.hardsigmoid_backward.default: _hardsigmoid_backward,
    _ATEN.hardswish.default: _hardswish,
    _ATEN.hardswish_backward.default: _hardswish_backward,
    _ATEN.leaky_relu.default: _leaky_relu,
    _ATEN.leaky_relu_backward.default: _leaky_relu_backward,
    _ATEN.elu.default: _elu,
    _ATEN.gelu.default: _gelu,
    _ATEN._to_copy.default: _cast,
    _ATEN.clone.default: _same,
    _ATEN.alias.default: _same,
    _ATEN.detach.default: _same,
    _ATEN.lift_fresh_copy.default: _same,
}
