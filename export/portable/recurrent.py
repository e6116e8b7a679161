"""Recurrent layers, each as one operator of a joint graph: torch's own come apart into every step while it captures.

The operators are declared, never run: torch learns what shapes they give and what their derivatives are called, and
export/portable/unrolled.py writes them. Values are float32[steps, batch, width], as torch has them inside.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_ATEN = torch.ops.aten
NAMESPACE = "sparsefleet"
_STATES = {"lstm": 2, "gru": 1, "rnn": 1}
# What a step has that its backward needs, as a multiple of the layer's width, after results and last states.
SAVED = {"lstm": (2, 1, 1, 1, 1), "gru": (2, 1, 1), "rnn": ()}
_WEIGHTS = "Tensor w_x, Tensor w_h, Tensor? b_x, Tensor? b_h"


def _declare(kind: str) -> None:
    states, saved = _STATES[kind], len(SAVED[kind])
    begins = ", ".join(f"Tensor s{i}" for i in range(states))
    ends = ", ".join(["Tensor"] * (1 + states + saved))
    torch.library.define(
        f"{NAMESPACE}::{kind}", f"(Tensor x, {begins}, {_WEIGHTS}, bool reverse, bool squashed) -> ({ends})"
    )
    slopes = ", ".join(f"Tensor? g{i}" for i in range(1 + states))
    held = ", ".join(f"Tensor h{i}" for i in range(1 + saved))
    wanted = ", ".join(["Tensor"] * (5 + states))
    torch.library.define(
        f"{NAMESPACE}::{kind}_backward",
        f"({slopes}, Tensor x, {begins}, {_WEIGHTS}, bool reverse, bool squashed, {held}) -> ({wanted})",
    )
    torch.library.register_fake(f"{NAMESPACE}::{kind}", _forward_shapes(kind))
    torch.library.register_fake(f"{NAMESPACE}::{kind}_backward", _backward_shapes(kind))
    torch.library.register_autograd(f"{NAMESPACE}::{kind}", _backward(kind), setup_context=_keep(kind))


def _forward_shapes(kind: str) -> Callable[..., tuple[Tensor, ...]]:
    def shapes(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        begins = rest[: _STATES[kind]]
        steps, batch, width = x.shape[0], x.shape[1], begins[0].shape[-1]
        ends = [torch.empty_like(s) for s in begins]
        kept = [x.new_empty(steps, batch, many * width) for many in SAVED[kind]]
        return x.new_empty(steps, batch, width), *ends, *kept

    return shapes


def _backward_shapes(kind: str) -> Callable[..., tuple[Tensor, ...]]:
    def shapes(*given: Any) -> tuple[Tensor, ...]:
        states = _STATES[kind]
        wanted = given[1 + states : 1 + states + 5 + states]
        # No bias: nobody asks for its gradient.
        return tuple(given[1 + states].new_empty(0) if v is None else torch.empty_like(v) for v in wanted)

    return shapes


def _keep(kind: str) -> Callable[..., None]:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.options = inputs[-2:]
        ctx.biased = inputs[-3] is not None
        saved = (output[0], *output[1 + _STATES[kind] :])
        ctx.save_for_backward(*(v for v in inputs[:-2] if v is not None), *saved)

    return keep


def _backward(kind: str) -> Callable[..., tuple[Any, ...]]:
    def backward(ctx: Any, *slopes: Tensor | None) -> tuple[Any, ...]:
        states, held = _STATES[kind], list(ctx.saved_tensors)
        count = 3 + states + (2 if ctx.biased else 0)
        given, saved = held[:count], held[count:]
        if not ctx.biased:
            given += [None, None]
        operator = getattr(getattr(torch.ops, NAMESPACE), f"{kind}_backward").default
        found = operator(*slopes[: 1 + states], *given, *ctx.options, *saved)
        return *(None if v is None else g for g, v in zip(found, given, strict=True)), None, None

    return backward


for _kind in _STATES:
    _declare(_kind)


def _layers(kind: str, squashed: bool = True) -> Callable[..., Any]:
    """The operator of torch that has all layers and both directions, with masks for what it drops between layers."""

    def whole(
        masks: Sequence[Tensor],
        x: Tensor,
        states: Tensor | Sequence[Tensor],
        weights: Sequence[Tensor],
        biased: bool,
        layers: int,
        dropout: float,
        train: bool,
        both: bool,
        batch_first: bool,
    ) -> Any:
        begins = [states] if isinstance(states, Tensor) else list(states)
        ways, size = (2 if both else 1), (4 if biased else 2)
        if len(weights) != layers * ways * size or (len(begins) == 2 and begins[0].shape[-1] != begins[1].shape[-1]):
            return NotImplemented
        operator = getattr(getattr(torch.ops, NAMESPACE), kind).default
        x = x.transpose(0, 1) if batch_first else x
        ends: list[list[Tensor]] = [[] for _ in begins]
        for layer in range(layers):
            if layer and masks:
                x = x * masks[layer - 1].flatten().reshape(x.shape)
            parts = []
            for way in range(ways):
                place = layer * ways + way
                own = [*weights[place * size : (place + 1) * size], None, None][:4]
                result, *last = operator(x, *(s[place] for s in begins), *own, way == 1, squashed)[: 1 + len(begins)]
                parts.append(result)
                for end, value in zip(ends, last, strict=True):
                    end.append(value)
            x = parts[0] if ways == 1 else torch.cat(parts, 2)
        return (x.transpose(0, 1) if batch_first else x, *(torch.stack(end) for end in ends))

    return whole


LAYERS: Mapping[Any, Callable[..., Any]] = {
    _ATEN.lstm.input: _layers("lstm"),
    _ATEN.gru.input: _layers("gru"),
    _ATEN.rnn_tanh.input: _layers("rnn"),
    _ATEN.rnn_relu.input: _layers("rnn", squashed=False),
}
