"""Operators that the training runtime has no gradient for, written in those that it has.

Only the training graph is rewritten: evaluation and inference keep the operator itself. Each rewriting is the same
function with the same slope, also far from zero, where the usual form of two branches multiplies infinity by nothing.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from export.capture import quiet

_ATEN = torch.ops.aten


def trainable(captured: ExportedProgram) -> ExportedProgram:
    """The captured program without operators of the table below; every random draw is a native_dropout."""
    for node in captured.graph.nodes:
        # In place or not is the same where nobody else reads the input, and torch would write it as five operators.
        if node.target == _ATEN.dropout_.default and len(node.args[0].users) == 1:
            node.target = _ATEN.dropout.default
    captured.graph_module.recompile()
    with quiet():
        rewritten: ExportedProgram = captured.run_decompositions(dict(TABLE))
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
    if enable_gqa:
        # Left to torch's exporter, which refuses it where it cannot write it.
        return NotImplemented  # type: ignore[no-any-return]
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    weights = torch.softmax(scores, dim=-1)
    return torch.dropout(weights, dropout_p, True) @ value


TABLE: dict[Any, Callable[..., Any]] = {
    _ATEN.bernoulli.p: _bernoulli,
    _ATEN.scaled_dot_product_attention.default: _attention,
}
