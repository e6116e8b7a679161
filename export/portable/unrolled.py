"""Recurrent layers written out step by step, over as many steps as the examples have.

What needs no earlier step is one product over all steps: the inputs' share of the gates before, the weights' gradients
after. Going back, everything is linear in what comes from the step after; the factors are computed for all steps at
once. Hochreiter and Schmidhuber, "Long Short-Term Memory" (1997); Cho et al., "Learning Phrase Representations" (2014),
with torch's place of the reset gate.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from export.portable.arithmetic import step as step_of
from export.portable.graph import Graph, UnwritableError, Value
from export.portable.recurrent import NAMESPACE

Rule = Callable[..., Any]
_END = 2**63 - 1


@dataclass(frozen=True, slots=True)
class _Layer:
    """One direction of one layer: weights by name, and the order in which it goes through the steps."""

    g: Graph
    x: Value
    width: int
    w_x: Value
    w_h: Value
    b_x: Value | None
    b_h: Value | None
    reverse: bool

    @property
    def steps(self) -> int:
        steps = self.x.shape[0]
        if not isinstance(steps, int):
            raise UnwritableError("a recurrent layer over an axis that depends on the batch; put time on its own axis")
        return steps

    @property
    def order(self) -> list[int]:
        return list(range(self.steps))[:: -1 if self.reverse else 1]

    def flat(self, name: str) -> str:
        """float32[steps * batch, width] from float32[steps, batch, width]."""
        return self.g.op("Flatten", name, axis=2)

    def apart(self, name: str) -> tuple[str, ...]:
        """float32[batch, width] for each step, from all of them in a matrix."""
        return self.g.ops("Split", (name,), self.steps, axis=0, num_outputs=self.steps) if self.steps > 1 else (name,)

    def together(self, parts: Mapping[int, str]) -> str:
        """float32[steps * batch, width] from the steps' values."""
        return self.g.op("Concat", *(parts[t] for t in range(self.steps)), axis=0) if self.steps > 1 else parts[0]

    def shaped(self, name: str, width: int) -> str:
        """float32[steps, batch, width] from a matrix of all steps."""
        return self.g.op("Reshape", name, self.g.ints(self.steps, -1, width))

    def before(self, states: Value, begin: Value) -> str:
        """float32[steps * batch, width]: the state that each step began from."""
        first = self.g.op("Unsqueeze", begin.name, self.g.ints(0))
        if self.steps == 1:
            return begin.name
        span = (1, _END) if self.reverse else (0, self.steps - 1)
        rest = self.g.op("Slice", states.name, self.g.ints(span[0]), self.g.ints(span[1]), self.g.ints(0))
        return self.flat(self.g.op("Concat", *((rest, first) if self.reverse else (first, rest)), axis=0))

    def inputs(self, biases: Sequence[Value | None]) -> str:
        """float32[steps * batch, gates]: the inputs' share of every step's gates."""
        given = [b.name for b in biases if b is not None]
        bias = [] if not given else [given[0] if len(given) == 1 else self.g.op("Add", *given)]
        return self.g.op("Gemm", self.flat(self.x.name), self.w_x.name, *bias, transB=1)

    def slopes(self, of_inputs: str, of_states: str, states: str) -> tuple[str | None, ...]:
        """Gradients of the input and of what `_WEIGHTS` lists, from those of all steps' gates, for both their parts."""
        g = self.g
        to_x = self.shaped(g.op("Gemm", of_inputs, self.w_x.name), int(self.x.shape[2]))
        to_w_x = g.op("Gemm", of_inputs, self.flat(self.x.name), transA=1)
        to_w_h = g.op("Gemm", of_states, states, transA=1)
        biases = (None, None) if self.b_x is None else (g.sum(of_inputs, [0]), g.sum(of_states, [0]))
        return to_x, to_w_x, to_w_h, *biases


def _cut(g: Graph, name: str, *widths: int) -> tuple[str, ...]:
    return g.ops("Split", (name, g.ints(*widths)), len(widths), axis=1)


def _one_less(g: Graph, name: str) -> str:
    return g.op("Sub", g.constant(1.0), name)


def _bent(g: Graph, name: str) -> str:
    """The slope of a sigmoid whose value is given."""
    return g.op("Mul", name, _one_less(g, name))


def _bent_tanh(g: Graph, name: str) -> str:
    return _one_less(g, g.op("Mul", name, name))


def _arriving(layer: _Layer, slope: Value | None) -> tuple[str | None, ...]:
    return (None,) * layer.steps if slope is None else layer.apart(layer.flat(slope.name))


def _added(g: Graph, *names: str | None) -> str | None:
    given = [n for n in names if n is not None]
    total = given[0] if given else None
    for name in given[1:]:
        assert total is not None
        total = g.op("Add", total, name)
    return total


def _product(g: Graph, a: str, weight: Value, more: str | None) -> str:
    return g.op("Gemm", a, weight.name, *([] if more is None else [more]))


def _zeros(g: Graph, like: Value) -> str:
    return g.op("Mul", like.name, g.constant(0.0))


def _lstm(
    g: Graph,
    out: Any,
    x: Value,
    hidden: Value,
    cell: Value,
    w_x: Value,
    w_h: Value,
    b_x: Value | None,
    b_h: Value | None,
    reverse: bool,
    squashed: bool,
) -> tuple[str, ...]:
    layer = _Layer(g, x, int(hidden.shape[1]), w_x, w_h, b_x, b_h, reverse)
    n, given = layer.width, layer.apart(layer.inputs((b_x, b_h)))
    h, c = hidden.name, cell.name
    results: dict[int, tuple[str, ...]] = {}
    for t in layer.order:
        gates = g.op("Gemm", h, w_h.name, given[t], transB=1)
        opening, new, out_gate = _cut(g, gates, 2 * n, n, n)
        opening, new, out_gate = g.op("Sigmoid", opening), g.op("Tanh", new), g.op("Sigmoid", out_gate)
        into, forget = _cut(g, opening, n, n)
        c = g.op("Add", g.op("Mul", forget, c), g.op("Mul", into, new))
        flat = g.op("Tanh", c)
        h = g.op("Mul", out_gate, flat)
        results[t] = (h, opening, new, out_gate, c, flat)
    whole = [layer.together({t: parts[i] for t, parts in results.items()}) for i in range(6)]
    y, *saved = (layer.shaped(w, many * n) for w, many in zip(whole, (1, 2, 1, 1, 1, 1), strict=True))
    return y, h, c, *saved


def _lstm_backward(
    g: Graph,
    out: Any,
    to_results: Value | None,
    to_hidden: Value | None,
    to_cell: Value | None,
    x: Value,
    hidden: Value,
    cell: Value,
    w_x: Value,
    w_h: Value,
    b_x: Value | None,
    b_h: Value | None,
    reverse: bool,
    squashed: bool,
    y: Value,
    opening: Value,
    new: Value,
    out_gate: Value,
    cells: Value,
    flat: Value,
) -> tuple[str | None, ...]:
    layer = _Layer(g, x, int(hidden.shape[1]), w_x, w_h, b_x, b_h, reverse)
    n = layer.width
    gates, fresh, out_all, level = (layer.flat(v.name) for v in (opening, new, out_gate, flat))
    into, forget = _cut(g, gates, n, n)
    of_gates = g.op("Mul", _bent(g, gates), g.op("Concat", fresh, layer.before(cells, cell), axis=1))
    of_new = g.op("Mul", into, _bent_tanh(g, fresh))
    of_out = g.op("Mul", level, _bent(g, out_all))
    factors = layer.apart(g.op("Concat", of_gates, of_new, of_out, axis=1))
    of_cell, kept = layer.apart(g.op("Mul", out_all, _bent_tanh(g, level))), layer.apart(forget)
    arriving = _arriving(layer, to_results)
    flow: str | None = None if to_hidden is None else to_hidden.name
    carried: str | None = None if to_cell is None else to_cell.name
    found: dict[int, str] = {}
    for t in layer.order[::-1]:
        if found:
            flow = _product(g, found[_after(layer, t)], w_h, arriving[t])
        else:
            flow = _added(g, arriving[t], flow) or _zeros(g, hidden)
        down = _added(g, g.op("Mul", flow, of_cell[t]), carried)
        assert down is not None
        found[t] = g.op("Mul", g.op("Concat", down, down, down, flow, axis=1), factors[t])
        carried = g.op("Mul", down, kept[t])
    every = layer.together(found)
    to_x, *rest = layer.slopes(every, every, layer.before(y, hidden))
    return to_x, _product(g, found[layer.order[0]], w_h, None), carried, *rest


def _after(layer: _Layer, t: int) -> int:
    return t - 1 if layer.reverse else t + 1


def _gru(
    g: Graph,
    out: Any,
    x: Value,
    hidden: Value,
    w_x: Value,
    w_h: Value,
    b_x: Value | None,
    b_h: Value | None,
    reverse: bool,
    squashed: bool,
) -> tuple[str, ...]:
    layer = _Layer(g, x, int(hidden.shape[1]), w_x, w_h, b_x, b_h, reverse)
    n, h = layer.width, hidden.name
    gates, fresh = (layer.apart(part) for part in _cut(g, layer.inputs((b_x,)), 2 * n, n))
    bias = [] if b_h is None else [b_h.name]
    results: dict[int, tuple[str, ...]] = {}
    for t in layer.order:
        own_gates, own_new = _cut(g, g.op("Gemm", h, w_h.name, *bias, transB=1), 2 * n, n)
        opening = g.op("Sigmoid", g.op("Add", gates[t], own_gates))
        reset, update = _cut(g, opening, n, n)
        new = g.op("Tanh", g.op("Add", fresh[t], g.op("Mul", reset, own_new)))
        h = g.op("Add", new, g.op("Mul", update, g.op("Sub", h, new)))
        results[t] = (h, opening, new, own_new)
    whole = [layer.together({t: parts[i] for t, parts in results.items()}) for i in range(4)]
    y, *saved = (layer.shaped(w, many * n) for w, many in zip(whole, (1, 2, 1, 1), strict=True))
    return y, h, *saved


def _gru_backward(
    g: Graph,
    out: Any,
    to_results: Value | None,
    to_hidden: Value | None,
    x: Value,
    hidden: Value,
    w_x: Value,
    w_h: Value,
    b_x: Value | None,
    b_h: Value | None,
    reverse: bool,
    squashed: bool,
    y: Value,
    opening: Value,
    new: Value,
    own_new: Value,
) -> tuple[str | None, ...]:
    layer = _Layer(g, x, int(hidden.shape[1]), w_x, w_h, b_x, b_h, reverse)
    n, states = layer.width, layer.before(y, hidden)
    gates, fresh, own = (layer.flat(v.name) for v in (opening, new, own_new))
    reset, update = _cut(g, gates, n, n)
    of_new = g.op("Mul", _one_less(g, update), _bent_tanh(g, fresh))
    inner = g.op("Concat", g.op("Mul", of_new, own), g.op("Sub", states, fresh), axis=1)
    of_gates = g.op("Mul", _bent(g, gates), inner)
    factors = layer.apart(g.op("Concat", of_gates, g.op("Mul", of_new, reset), axis=1))
    kept, arriving = layer.apart(update), _arriving(layer, to_results)
    flow = _added(g, arriving[layer.order[-1]], None if to_hidden is None else to_hidden.name) or _zeros(g, hidden)
    flows: dict[int, str] = {}
    found: dict[int, str] = {}
    for t in layer.order[::-1]:
        flows[t] = flow
        found[t] = g.op("Mul", g.op("Concat", flow, flow, flow, axis=1), factors[t])
        flow = _product(g, found[t], w_h, g.op("Mul", flow, kept[t]))
        if t != layer.order[0]:
            flow = _added(g, flow, arriving[_before(layer, t)]) or flow
    of_states = layer.together(found)
    to_gates, _ = _cut(g, of_states, 2 * n, n)
    of_inputs = g.op("Concat", to_gates, g.op("Mul", layer.together(flows), of_new), axis=1)
    to_x, *rest = layer.slopes(of_inputs, of_states, states)
    return to_x, flow, *rest


def _before(layer: _Layer, t: int) -> int:
    return t + 1 if layer.reverse else t - 1


def _rnn(
    g: Graph,
    out: Any,
    x: Value,
    hidden: Value,
    w_x: Value,
    w_h: Value,
    b_x: Value | None,
    b_h: Value | None,
    reverse: bool,
    squashed: bool,
) -> tuple[str, ...]:
    layer = _Layer(g, x, int(hidden.shape[1]), w_x, w_h, b_x, b_h, reverse)
    h, given = hidden.name, layer.apart(layer.inputs((b_x, b_h)))
    results: dict[int, str] = {}
    for t in layer.order:
        h = results[t] = g.op("Tanh" if squashed else "Relu", g.op("Gemm", h, w_h.name, given[t], transB=1))
    return layer.shaped(layer.together(results), layer.width), h


def _rnn_backward(
    g: Graph,
    out: Any,
    to_results: Value | None,
    to_hidden: Value | None,
    x: Value,
    hidden: Value,
    w_x: Value,
    w_h: Value,
    b_x: Value | None,
    b_h: Value | None,
    reverse: bool,
    squashed: bool,
    y: Value,
) -> tuple[str | None, ...]:
    layer = _Layer(g, x, int(hidden.shape[1]), w_x, w_h, b_x, b_h, reverse)
    results = layer.flat(y.name)
    factors = layer.apart(_bent_tanh(g, results) if squashed else step_of(g, results))
    arriving = _arriving(layer, to_results)
    flow: str | None = None if to_hidden is None else to_hidden.name
    found: dict[int, str] = {}
    for t in layer.order[::-1]:
        if found:
            flow = _product(g, found[_after(layer, t)], w_h, arriving[t])
        else:
            flow = _added(g, arriving[t], flow) or _zeros(g, hidden)
        found[t] = g.op("Mul", flow, factors[t])
    every = layer.together(found)
    to_x, *rest = layer.slopes(every, every, layer.before(y, hidden))
    return to_x, _product(g, found[layer.order[0]], w_h, None), *rest


_OWN = getattr(torch.ops, NAMESPACE)
RULES: Mapping[Any, Rule] = {
    _OWN.lstm.default: _lstm,
    _OWN.lstm_backward.default: _lstm_backward,
    _OWN.gru.default: _gru,
    _OWN.gru_backward.default: _gru_backward,
    _OWN.rnn.default: _rnn,
    _OWN.rnn_backward.default: _rnn_backward,
}
