"""Which layer a node of a joint graph came from: torch forgets it, so a second capture has a mark after every operator.

It costs as much as the first, and is for what is refused alone.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from export.portable.recurrent import NAMESPACE

torch.library.define(f"{NAMESPACE}::mark", "(Tensor x, int place) -> Tensor")
torch.library.define(f"{NAMESPACE}::mark_backward", "(Tensor x, int place) -> Tensor")


def _same_shape(x: Tensor, place: int) -> Tensor:
    return torch.empty_like(x)


torch.library.register_fake(f"{NAMESPACE}::mark", _same_shape)
torch.library.register_fake(f"{NAMESPACE}::mark_backward", _same_shape)
_MARK, _MARK_BACKWARD = torch.ops.sparsefleet.mark.default, torch.ops.sparsefleet.mark_backward.default


def _keep(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.place = inputs[1]


def _backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
    return _MARK_BACKWARD(slope, ctx.place), None


torch.library.register_autograd(f"{NAMESPACE}::mark", _backward, setup_context=_keep)


def marked(result: Any, place: int) -> Any:
    """What an operator gave, with its place noted on every tensor of numbers."""
    if isinstance(result, tuple | list):
        return type(result)(marked(part, place) for part in result)
    if isinstance(result, Tensor) and result.is_floating_point():
        return _MARK(result, place)
    return result


def place_of(node: Node, others: Iterable[Node]) -> int | None:
    """The place noted nearest to the node's twin among `others`, which have marks.

    A gradient comes through its operator's mark before the operator's own nodes; a value goes to it after them.
    """
    same = [n for n in node.graph.nodes if n.target == node.target]
    twins = [n for n in others if n.target == node.target]
    if len(same) != len(twins):
        return None
    twin = twins[same.index(node)]
    found = _nearest(twin, _MARK_BACKWARD, lambda n: n.all_input_nodes)
    if found is None:
        found = _nearest(twin, _MARK, lambda n: list(n.users))
    if found is None:
        return None
    place = found.args[1]
    assert isinstance(place, int)
    return place


def _nearest(start: Node, target: Any, beside: Callable[[Node], list[Node]]) -> Node | None:
    waiting, seen = [start], {start}
    for node in waiting:
        if node.target is target:
            return node
        fresh = [n for n in beside(node) if n not in seen]
        seen.update(fresh)
        waiting += fresh
    return None
