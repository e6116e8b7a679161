"""Connectionist temporal classification: its loss and gradient in log space, step by step over the examples' length.

Graves et al., "Connectionist Temporal Classification" (ICML 2006), equations 6 to 16. The gradient is torch's, which
takes what it is given for logarithms of shares. Impossible is -1e30, not minus infinity: nothing becomes no number.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from export.portable.graph import Graph, UnwritableError, Value
from export.portable.recurrent import NAMESPACE

_NEVER = -1e30

# log_p: float32[steps, batch, classes]. labels: int64[batch, longest]. steps_of, lengths: int64[batch]. The loss is
# float32[batch]; what follows are the forward variables, float32[steps, batch, 2 * longest + 1].
torch.library.define(
    f"{NAMESPACE}::ctc",
    "(Tensor log_p, Tensor labels, Tensor steps_of, Tensor lengths, int blank) -> (Tensor, Tensor)",
)
torch.library.define(
    f"{NAMESPACE}::ctc_backward",
    "(Tensor slope, Tensor log_p, Tensor labels, Tensor steps_of, Tensor lengths, int blank, Tensor loss, Tensor ahead)"
    " -> Tensor",
)
CTC, _CTC_BACKWARD = torch.ops.sparsefleet.ctc.default, torch.ops.sparsefleet.ctc_backward.default


def _shapes(log_p: Tensor, labels: Tensor, steps_of: Tensor, lengths: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    steps, batch = log_p.shape[:2]
    return log_p.new_empty(batch), log_p.new_empty(steps, batch, 2 * labels.shape[1] + 1)


def _backward_shape(slope: Tensor, log_p: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(log_p)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.blank = inputs[-1]
    ctx.save_for_backward(*inputs[:-1], *output)


def _slope(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    log_p, labels, steps_of, lengths, loss, ahead = ctx.saved_tensors
    found = _CTC_BACKWARD(slope, log_p, labels, steps_of, lengths, ctx.blank, loss, ahead)
    return found, None, None, None, None


torch.library.register_fake(f"{NAMESPACE}::ctc", _shapes)
torch.library.register_fake(f"{NAMESPACE}::ctc_backward", _backward_shape)
torch.library.register_autograd(f"{NAMESPACE}::ctc", _slope, setup_context=_keep)


_CALLED = (torch.ctc_loss, torch.nn.functional.ctc_loss)


class Followed(TorchFunctionMode):
    """Puts the operator in the place of torch's own, whose length tensors torch.export cannot follow."""

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        given = kwargs or {}
        result = _loss(*args, **given) if function in _CALLED else NotImplemented
        return function(*args, **given) if result is NotImplemented else result


def _loss(
    log_probs: Tensor,
    targets: Tensor,
    input_lengths: Any,
    target_lengths: Any,
    blank: int = 0,
    reduction: int | str = "mean",
    zero_infinity: bool = False,
) -> Tensor:
    """torch.nn.functional.ctc_loss over a matrix of targets and tensors of lengths."""
    tensors = isinstance(input_lengths, Tensor) and isinstance(target_lengths, Tensor)
    if log_probs.ndim != 3 or targets.ndim != 2 or not tensors:
        return NotImplemented  # type: ignore[no-any-return]
    losses: Tensor = CTC(log_probs, targets, input_lengths.long(), target_lengths.long(), blank)[0]
    if zero_infinity:
        losses = torch.where(torch.isinf(losses), 0.0, losses)
    if reduction in ("mean", 1):
        losses = losses / target_lengths.clamp(min=1)
        return losses.mean()
    return losses if reduction in ("none", 0) else losses.sum()


def stepwise(log_p: Tensor, labels: Tensor, steps_of: Tensor, lengths: Tensor, blank: int) -> tuple[Tensor, Tensor]:
    """The operator in those of torch, for graphs without gradients; the forward variables are not given."""
    steps, batch, classes = log_p.shape
    places = torch.constant_pad_nd(labels.clamp(0, classes - 1).unsqueeze(2), [1, 0], blank).reshape(batch, -1)
    places = torch.constant_pad_nd(places, [0, 1], blank)
    states = places.shape[1]
    stays = (places == torch.constant_pad_nd(places[:, :-2], [2, 0], blank)) | (places == blank)
    skipping = stays.to(log_p.dtype) * _NEVER
    ends, order = 2 * lengths.unsqueeze(1), torch.arange(states).unsqueeze(0)
    ending = ((order != ends) & (order != ends - 1)).to(log_p.dtype) * _NEVER
    final = steps_of.unsqueeze(1) - 1
    state = log_p[0].gather(1, places) + (order > 1).to(log_p.dtype) * _NEVER
    found = state
    for t in range(1, steps):
        once = torch.constant_pad_nd(state[:, :-1], [1, 0], _NEVER)
        twice = torch.constant_pad_nd(state[:, :-2], [2, 0], _NEVER) + skipping
        largest = torch.maximum(torch.maximum(state, once), twice)
        total = (state - largest).exp() + (once - largest).exp() + (twice - largest).exp()
        state = total.log() + largest + log_p[t].gather(1, places)
        found = torch.where(final == t, state, found)
    loss = -(found + ending).logsumexp(1)
    return torch.where(loss > -_NEVER / 10, math.inf, loss), log_p.new_empty(0)


class _Lattice:
    """What the recursions over one batch of labels share, by name."""

    def __init__(self, g: Graph, log_p: Value, labels: Value, steps_of: Value, lengths: Value, blank: int) -> None:
        steps, _, classes = log_p.shape
        longest = labels.shape[1]
        if not all(isinstance(size, int) for size in (steps, classes, longest)):
            raise UnwritableError("a CTC loss whose steps or labels depend on the batch")
        self.g, self.steps, self.classes, self.states = g, int(steps), int(classes), 2 * int(longest) + 1
        last = g.constant(self.classes - 1, torch.int64)
        # What lies beyond a short example's labels may be anything.
        clipped = g.op("Min", g.op("Max", labels.name, g.constant(0, torch.int64)), last)
        apart = g.op(
            "Pad", g.op("Unsqueeze", clipped, g.ints(2)), g.ints(0, 0, 1, 0, 0, 0), g.constant(blank, torch.int64)
        )
        flat = g.op("Reshape", apart, g.ints(0, self.states - 1))
        self.places = g.op("Pad", flat, g.ints(0, 0, 0, 1), g.constant(blank, torch.int64))
        earlier = g.op("Pad", self.places, g.ints(0, 2, 0, -2), g.constant(blank, torch.int64))
        stays = g.op(
            "Or", g.op("Equal", self.places, earlier), g.op("Equal", self.places, g.constant(blank, torch.int64))
        )
        never, zero = g.constant(_NEVER), g.constant(0.0)
        self.skipping = g.op("Where", stays, never, zero)
        ends = g.op("Unsqueeze", g.op("Mul", lengths.name, g.constant(2, torch.int64)), g.ints(1))
        states = g.constant([list(range(self.states))], torch.int64)
        before = g.op("Sub", ends, g.constant(1, torch.int64))
        self.ending = g.op("Where", g.op("Or", g.op("Equal", states, ends), g.op("Equal", states, before)), zero, never)
        self.final = g.op("Sub", g.op("Unsqueeze", steps_of.name, g.ints(1)), g.constant(1, torch.int64))
        # float32[steps, batch, states]: the logarithm of each state's share at every step.
        wide = g.op("Unsqueeze", self.places, g.ints(0))
        shape = g.op("Concat", g.ints(self.steps), g.op("Shape", self.places), axis=0)
        self.shares = g.op("GatherElements", log_p.name, g.op("Expand", wide, shape), axis=2)
        rows = (
            g.ops("Split", (self.shares,), self.steps, axis=0, num_outputs=self.steps)
            if self.steps > 1
            else (self.shares,)
        )
        self.at = [g.op("Squeeze", row, g.ints(0)) for row in rows]

    def moved(self, name: str, by: int) -> str:
        """Every state's value at the state so far on."""
        return self.g.op("Pad", name, self.g.ints(0, by, 0, -by), self.g.constant(_NEVER))

    def summed(self, *names: str) -> str:
        """The logarithm of the sum of what these are logarithms of."""
        g = self.g
        largest = g.op("Max", *names)
        return g.op("Add", largest, g.op("Log", g.op("Sum", *(g.op("Exp", g.op("Sub", n, largest)) for n in names))))

    def ahead(self) -> str:
        """float32[steps, batch, states]: the logarithm of the share of all ways to each state."""
        g = self.g
        begin = g.constant([[0.0, 0.0] + [_NEVER] * (self.states - 2)])
        state = g.op("Add", self.at[0], begin)
        states = [state]
        for share in self.at[1:]:
            skipped = g.op("Add", self.moved(state, 2), self.skipping)
            state = g.op("Add", self.summed(state, self.moved(state, 1), skipped), share)
            states.append(state)
        return self.joined(states)

    def behind(self) -> str:
        """float32[steps, batch, states]: of all ways on from each state, itself counted."""
        g = self.g
        states: list[str] = []
        for t in reversed(range(self.steps)):
            share = self.at[t]
            ends = g.op("Where", g.op("Equal", self.final, g.constant(t, torch.int64)), self.ending, g.constant(_NEVER))
            if states:
                after = states[-1]
                skipped = self.moved(g.op("Add", after, self.skipping), -2)
                ends = g.op("Max", ends, self.summed(after, self.moved(after, -1), skipped))
            states.append(g.op("Add", ends, share))
        return self.joined(states[::-1])

    def joined(self, states: list[str]) -> str:
        rows = [self.g.op("Unsqueeze", s, self.g.ints(0)) for s in states]
        return self.g.op("Concat", *rows, axis=0) if len(rows) > 1 else rows[0]

    def counted(self) -> str:
        """bool[steps, batch, 1]: whether a step is one of its example's."""
        steps = self.g.constant([[[t]] for t in range(self.steps)], torch.int64)
        return self.g.op("LessOrEqual", steps, self.final)


def _ctc(
    g: Graph, out: Any, log_p: Value, labels: Value, steps_of: Value, lengths: Value, blank: int
) -> tuple[str, str]:
    lattice = _Lattice(g, log_p, labels, steps_of, lengths, blank)
    ahead = lattice.ahead()
    steps = g.constant([[[t]] for t in range(lattice.steps)], torch.int64)
    at_end = g.op("Where", g.op("Equal", steps, lattice.final), ahead, g.constant(0.0))
    ends = g.op("Add", g.sum(at_end, [0]), lattice.ending)
    largest = g.op("ReduceMax", ends, g.ints(1), keepdims=1)
    total = g.op("Log", g.sum(g.op("Exp", g.op("Sub", ends, largest)), [1]))
    loss = g.op("Neg", g.op("Add", g.op("Squeeze", largest, g.ints(1)), total))
    impossible = g.op("Greater", loss, g.constant(-_NEVER / 10))
    return g.op("Where", impossible, g.constant(float("inf")), loss), ahead


def _ctc_backward(
    g: Graph,
    out: Tensor,
    slope: Value,
    log_p: Value,
    labels: Value,
    steps_of: Value,
    lengths: Value,
    blank: int,
    loss: Value,
    ahead: Value,
) -> str:
    lattice = _Lattice(g, log_p, labels, steps_of, lengths, blank)
    zero = g.constant(0.0)
    possible = g.op("Less", loss.name, g.constant(-_NEVER / 10))
    known = g.op("Unsqueeze", g.op("Where", possible, loss.name, zero), g.ints(1))
    ways = g.op("Sub", g.op("Add", ahead.name, lattice.behind()), lattice.shares)
    shares = g.op("Exp", g.op("Min", g.op("Add", ways, known), zero))
    every = g.op("OneHot", lattice.places, g.constant(lattice.classes, torch.int64), g.constant([0.0, 1.0]), axis=-1)
    found = g.op("MatMul", g.transpose(shares, 1, 0, 2), every)
    off = g.op("Sub", g.op("Exp", log_p.name), g.transpose(found, 1, 0, 2))
    factor = g.op("Unsqueeze", g.op("Where", possible, slope.name, zero), g.ints(1))
    return g.op("Where", lattice.counted(), g.op("Mul", off, factor), zero)


RULES: Mapping[Any, Callable[..., Any]] = {CTC: _ctc, _CTC_BACKWARD: _ctc_backward}
