"""Operators that the training runtime has no gradient for, written in those that it has.

Only the training graph is rewritten: evaluation and inference keep the operator itself. Each rewriting is the same
function with the same slope, also far from zero, where the usual form of two branches multiplies infinity by nothing.
At a kink, where torch takes one of two slopes, some take the mean of both. Windows and sizes are in windows.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decompositions
from torch.export import ExportedProgram
from torch.nn import functional

from export import losses, windows
from export.capture import quiet
from export.portable.ctc import CTC, stepwise
from export.portable.forms import FORMS

_ATEN = torch.ops.aten


def trainable(captured: ExportedProgram) -> ExportedProgram:
    """The captured program without the operators of TABLE; every random draw is a native_dropout."""
    for node in captured.graph.nodes:
        # In place or not is the same where nobody else reads the input, and torch would write it as five operators.
        if node.target == _ATEN.dropout_.default and len(node.args[0].users) == 1:
            node.target = _ATEN.dropout.default
    captured.graph_module.recompile()
    stepwise = {
        n.target: _UNROLLED[n.target] for n in captured.graph.nodes if n.target in _UNROLLED and _goes_both_ways(n)
    }
    return _rewritten(faithful(captured), {**TABLE, **stepwise})


def faithful(captured: ExportedProgram) -> ExportedProgram:
    """The captured program without what torch's exporter or onnxruntime gets wrong."""
    table: dict[Any, Callable[..., Any]] = {CTC: stepwise} if any(n.target is CTC for n in captured.graph.nodes) else {}
    for node in captured.graph.nodes:
        arguments: tuple[Any, ...] = node.args
        if node.target == _ATEN.clamp.default and arguments[0].meta["val"].is_floating_point():
            # Of two bounds of different types the exporter makes tensors, which it then does not take.
            node.args = (arguments[0], *(float(a) if isinstance(a, int) else a for a in arguments[1:]))
        if node.target == _ATEN.lstm.input and _projects(arguments):
            table[node.target] = decompositions.lstm_impl
        if node.target in _WITHOUT_ONNX:
            table[node.target] = _WITHOUT_ONNX[node.target]
        # The exporter drops label smoothing, and takes shares for labels.
        if node.target == _ATEN.cross_entropy_loss.default and (
            any(arguments[5:]) or arguments[1].meta["val"].is_floating_point()
        ):
            table[node.target] = losses.cross_entropy
        # onnxruntime 1.19 divides by the whole window also where the last one reaches beyond the padding.
        if node.target == _ATEN.avg_pool2d.default and any(arguments[4:5]):
            table[node.target] = windows.avg_pool2d
    return _rewritten(captured, table) if table else captured


def _projects(arguments: tuple[Any, ...]) -> bool:
    """Whether an LSTM's results are narrower than its cells, which the exporter takes for the same."""
    hidden, cell = arguments[1]
    return bool(hidden.meta["val"].shape[-1] != cell.meta["val"].shape[-1])


def _goes_both_ways(node: torch.fx.Node) -> bool:
    """Whether a recurrent layer runs in both directions, which the runtime's own cannot train."""
    # The last but one of its arguments: bidirectional.
    return node.args[-2] is True


def _rewritten(captured: ExportedProgram, table: Mapping[Any, Callable[..., Any]]) -> ExportedProgram:
    with quiet():
        rewritten: ExportedProgram = captured.run_decompositions(dict(table))
    return rewritten


def _bernoulli(like: Tensor, p: float, generator: None = None) -> Tensor:
    return torch.native_dropout(torch.ones_like(like), 1 - p, True)[0] * p


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    weights = attention_weights(query, key, attn_mask, is_causal, scale, enable_gqa)
    return torch.dropout(weights, dropout_p, True) @ heads(value, query, enable_gqa)


def attention_weights(
    query: Tensor, key: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float | None, enable_gqa: bool
) -> Tensor:
    """Of aten.scaled_dot_product_attention, before dropout."""
    key = heads(key, query, enable_gqa)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores, dim=-1)


def heads(value: Tensor, query: Tensor, grouped: bool) -> Tensor:
    """Keys or values repeated to the query's number of heads, where several share one."""
    return value.repeat_interleave(query.shape[-3] // value.shape[-3], -3) if grouped else value


def _positive(x: Tensor) -> Tensor:
    return (x + x.abs()) / 2


def _negative(x: Tensor) -> Tensor:
    return (x - x.abs()) / 2


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    return scale * (_positive(x) + alpha * (torch.exp(_negative(x) * input_scale) - 1))


def _celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return _elu(x, alpha, 1.0, 1.0 / alpha)


def _selu(x: Tensor) -> Tensor:
    return _elu(x, 1.6732632423543772, 1.0507009873554805)


def _prelu(x: Tensor, weight: Tensor) -> Tensor:
    slope = weight if weight.numel() == 1 else weight.reshape(_channels(x))
    return _positive(x) + slope * _negative(x)


def _softplus(x: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    # Torch's straight line beyond the threshold is this within 2e-9.
    x = x * beta
    return (_positive(x) + torch.log(1 + torch.exp(-x.abs()))) / beta


def _mish(x: Tensor) -> Tensor:
    return x * torch.tanh(_softplus(x))


def _hardsigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


def _hardswish(x: Tensor) -> Tensor:
    return x * _hardsigmoid(x)


def _sign(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype) - (x < 0).to(x.dtype)


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, *_: bool
) -> Tensor:
    size = x.shape[1] // groups * math.prod(x.shape[2:])
    y = functional.layer_norm(x.reshape(x.shape[0], groups, size), [size], eps=eps).reshape(x.shape)
    return _scaled(y, weight, bias)


def _instance_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: None,
    var: None,
    batch: bool,
    m: float,
    eps: float,
    _: bool,
) -> Tensor:
    return _group_norm(x, x.shape[1], weight, bias, eps)


def _resting_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a layer that stays in evaluation mode while the model trains."""
    axes = _channels(x)
    normal = (x - mean.reshape(axes)) * torch.rsqrt(var + eps).reshape(axes)
    return _scaled(normal, weight, bias), mean.new_empty(0), mean.new_empty(0)


def _lstm_cell(
    x: Tensor, state: Sequence[Tensor], w_x: Tensor, w_h: Tensor, b_x: Tensor | None = None, b_h: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    hidden, cell = state
    gates = functional.linear(x, w_x, b_x) + functional.linear(hidden, w_h, b_h)
    into, forget, new, out = windows.chunk(gates, 4, 1)
    cell = torch.sigmoid(forget) * cell + torch.sigmoid(into) * torch.tanh(new)
    return torch.sigmoid(out) * torch.tanh(cell), cell


def _gru_cell(
    x: Tensor, hidden: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor | None = None, b_h: Tensor | None = None
) -> Tensor:
    reset_x, update_x, new_x = windows.chunk(functional.linear(x, w_x, b_x), 3, 1)
    reset_h, update_h, new_h = windows.chunk(functional.linear(hidden, w_h, b_h), 3, 1)
    update = torch.sigmoid(update_x + update_h)
    new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
    return new + update * (hidden - new)


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight.reshape(_channels(x))
    return x if bias is None else x + bias.reshape(_channels(x))


def _channels(x: Tensor) -> list[int]:
    """The shape that puts a vector along the second axis."""
    return [-1, *[1] * (x.ndim - 2)]


# What torch's exporter cannot write as it is, or writes as what no runtime loads.
_WITHOUT_ONNX: Mapping[Any, Callable[..., Any]] = {
    _ATEN.adaptive_max_pool1d.default: windows.adaptive_largest,
    _ATEN.adaptive_max_pool2d.default: windows.adaptive_largest,
    **{
        operator: FORMS[operator]
        for operator in (
            _ATEN.cdist.default,
            _ATEN._cdist_forward.default,
            _ATEN.embedding_bag.default,
            _ATEN.embedding_bag.padding_idx,
        )
    },
}
_UNROLLED: Mapping[Any, Callable[..., Any]] = {
    _ATEN.lstm.input: decompositions.lstm_impl,
    _ATEN.gru.input: decompositions.gru_impl,
    _ATEN.rnn_tanh.input: decompositions.rnn_tanh_input,
    _ATEN.rnn_relu.input: decompositions.rnn_relu_input,
}
TABLE: Mapping[Any, Callable[..., Any]] = {
    _ATEN.bernoulli.p: _bernoulli,
    _ATEN.scaled_dot_product_attention.default: _attention,
    _ATEN.elu.default: _elu,
    _ATEN.celu.default: _celu,
    _ATEN.selu.default: _selu,
    _ATEN.prelu.default: _prelu,
    _ATEN.softplus.default: _softplus,
    _ATEN.mish.default: _mish,
    _ATEN.hardsigmoid.default: _hardsigmoid,
    _ATEN.hardswish.default: _hardswish,
    _ATEN.sign.default: _sign,
    _ATEN.lstm_cell.default: _lstm_cell,
    _ATEN.gru_cell.default: _gru_cell,
    _ATEN.group_norm.default: _group_norm,
    _ATEN.instance_norm.default: _instance_norm,
    _ATEN._native_batch_norm_legit_no_training.default: _resting_batch_norm,
    _ATEN.nll_loss_nd.default: losses.nll,
    _ATEN.amax.default: windows.amax,
    _ATEN.amin.default: windows.amin,
    _ATEN.max.dim: windows.max_dim,
    _ATEN.min.dim: windows.min_dim,
    _ATEN.adaptive_max_pool1d.default: windows.adaptive_max_pool,
    _ATEN.adaptive_max_pool2d.default: windows.adaptive_max_pool,
    _ATEN.avg_pool2d.default: windows.avg_pool2d,
    _ATEN.upsample_nearest1d.vec: windows.upsample_nearest,
    _ATEN.upsample_nearest2d.vec: windows.upsample_nearest,
    _ATEN.upsample_linear1d.vec: windows.upsample_linear,
    _ATEN.upsample_bilinear2d.vec: windows.upsample_linear,
    _ATEN.conv_transpose1d.default: windows.conv_transpose,
    _ATEN.conv_transpose2d.input: windows.conv_transpose,
    _ATEN.pixel_shuffle.default: windows.pixel_shuffle,
    _ATEN.split.Tensor: windows.split,
    _ATEN.unsafe_split.Tensor: windows.split,
    _ATEN.split_with_sizes.default: windows.split_with_sizes,
    _ATEN.chunk.default: windows.chunk,
    _ATEN.unsafe_chunk.default: windows.chunk,
}
