"""A smaller module, without its less important channels: tensors cut along their axes, layers told of their sizes."""

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from sparse.channels.groups import channel_structure
from sparse.channels.scores import Score, channel_scores
from sparse.structure import Axes, ChannelGroup, Kept, Places, Structure, counts, places

# Of float32 sums in another order, of the largest output.
_ROUNDING = 1e-3

Module = TypeVar("Module", bound=nn.Module)


def remove_channels(
    module: Module,
    examples: tuple[Tensor, ...],
    keep: float,
    score: Score = "magnitude",
    *,
    leave: Sequence[str] = (),
    seed: int = 0,
) -> Module:
    """A copy of the module with round(keep * n) channels of every group of n, those of the highest scores.

    examples: what forward takes; they are only looked at. score: see `channel_scores`; ties go by index. leave:
    patterns over names of groups that stay whole, as in "features.*". What is kept is tried out: were the removed
    channels zero, the outputs would not change.

    Raises ValueError for a keep that leaves a group nothing or a module without channels to remove (see `counts`), a
    pattern that matches nothing, and a module whose forward cannot do with fewer channels.
    """
    groups, structure = channel_structure(module, examples)
    free = _without(groups, leave)
    number = counts(free, keep)
    scores = channel_scores(module, free, structure, score, seed)
    kept = {name: highest(scores[name], number[name]) for name in number}
    smaller = cut(module, structure, kept)
    try_out(module, smaller, structure, kept, examples)
    return smaller


def highest(scores: npt.NDArray[np.float64], number: int) -> Places:
    """The places of so many highest scores, rising; of equal ones the first."""
    return np.sort(np.argsort(-scores, kind="stable")[:number]).astype(np.int64)


def _without(groups: Sequence[ChannelGroup], leave: Sequence[str]) -> tuple[ChannelGroup, ...]:
    for pattern in leave:
        if not any(fnmatchcase(group.name, pattern) for group in groups):
            names = ", ".join(group.name for group in groups) or "none"
            raise ValueError(f"leave: {pattern!r} matches no group of channels; there are {names}")
    return tuple(group for group in groups if not any(fnmatchcase(group.name, pattern) for pattern in leave))


def try_out(
    module: nn.Module, smaller: nn.Module, structure: Structure, kept: Kept, examples: tuple[Tensor, ...]
) -> None:
    """Raises ValueError unless the smaller module runs, and computes what the module does with channels of zeros."""
    try:
        with torch.no_grad():
            copy.deepcopy(smaller).eval()(*examples)
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise ValueError(
            f"module: forward cannot do with fewer channels ({said}); write no sizes into it (x.flatten(1) rather than "
            "x.view(-1, 1600)), or leave the groups of the layers at fault whole (leave)"
        ) from None
    normed = _normed_over(module, structure)
    for group in kept:
        alone = {group: kept[group]}
        if group not in normed and not _same(
            _zeroed(module, structure, alone), cut(module, structure, alone), examples
        ):
            raise ValueError(
                f"module: what happens to the channels of {group!r} in forward was not understood, so they cannot be "
                f"removed; leave that group whole (leave={group!r})"
            )


def _same(zeros: nn.Module, smaller: nn.Module, examples: tuple[Tensor, ...]) -> bool:
    with torch.no_grad():
        whole, less = zeros.eval()(*examples), smaller.eval()(*examples)
    pairs = [(whole, less)] if isinstance(whole, Tensor) else list(zip(whole, less, strict=True))
    return all(a.shape == b.shape and _near(a, b) for a, b in pairs)


def _near(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _ROUNDING * a.abs().max())


def _zeroed(module: nn.Module, structure: Structure, kept: Kept) -> nn.Module:
    """A copy whose parameters are zero in every channel that is not kept."""
    zeros = copy.deepcopy(module)
    for name, parameter in zeros.named_parameters():
        for axis, segments in enumerate(structure.get(name, ())):
            held = torch.zeros(parameter.shape[axis])
            held[torch.from_numpy(places(segments, kept))] = 1
            parameter.data *= held.reshape([-1 if a == axis else 1 for a in range(parameter.ndim)])
    return zeros


def _normed_over(module: nn.Module, structure: Structure) -> set[str]:
    """Groups that a norm averages over, zeros included, and those that attention ties to such: they are not tried."""
    found = set()
    for path, layer in module.named_modules():
        over = isinstance(layer, nn.LayerNorm) or (isinstance(layer, nn.GroupNorm) and layer.num_groups == 1)
        if over or isinstance(layer, nn.MultiheadAttention):
            for name, axes in structure.items():
                if name.startswith(f"{path}."):
                    found |= {s.group for segments in axes for s in segments if s.group is not None}
    return found


def cut(module: Module, structure: Structure, kept: Kept) -> Module:
    """A copy of the module that holds the kept channels alone. Its values are the module's."""
    smaller = copy.deepcopy(module)
    old = dict(module.named_modules())
    made: dict[int, Tensor] = {}
    for path, layer in smaller.named_modules():
        prefix = f"{path}." if path else ""
        for name, tensor in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
            axes = structure.get(f"{prefix}{name}")
            if id(tensor) not in made and axes is not None:
                made[id(tensor)] = _cut_tensor(tensor, axes, kept)
            if id(tensor) in made:
                setattr(layer, name, made[id(tensor)])
    for path, layer in smaller.named_modules():
        _resize(layer, old[path])
    return smaller


def _cut_tensor(tensor: Tensor, axes: Axes, kept: Kept) -> Tensor:
    values = tensor.detach()
    for axis, segments in enumerate(axes):
        entries = places(segments, kept)
        if len(entries) < values.shape[axis]:
            values = values.index_select(axis, torch.from_numpy(entries))
    values = values.clone()
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _resize(layer: nn.Module, old: nn.Module) -> None:
    """Tells a layer of the sizes that its tensors have now."""
    if isinstance(layer, _ConvNd) and isinstance(old, _ConvNd):
        out, into = layer.weight.shape[0], layer.weight.shape[1]
        if layer.transposed:
            layer.in_channels, layer.out_channels = out, into * layer.groups
        else:
            if layer.groups > 1 and into == 1:
                layer.groups = layer.groups * out // old.weight.shape[0]
            layer.in_channels, layer.out_channels = into * layer.groups, out
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, _NormBase):
        # Scale or running mean; a norm without either takes any number of channels.
        layer.num_features = next((len(t) for t in layer.state_dict().values() if t.ndim), layer.num_features)
    elif isinstance(layer, nn.GroupNorm) and layer.affine:
        if layer.num_groups > 1:
            layer.num_groups = layer.num_groups * len(layer.weight) // layer.num_channels
        layer.num_channels = len(layer.weight)
    elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
        layer.normalized_shape = tuple(layer.weight.shape)
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = len(layer.weight)
    elif isinstance(layer, nn.Embedding):
        layer.embedding_dim = layer.weight.shape[1]
    elif isinstance(layer, nn.MultiheadAttention) and isinstance(old, nn.MultiheadAttention):
        _resize_attention(layer, old)
    elif isinstance(layer, nn.RNNBase):
        shapes = {name: tensor.shape for name, tensor in layer.named_parameters()}
        layer.input_size, layer.hidden_size = shapes["weight_ih_l0"][1], shapes["weight_hh_l0"][1]


def _resize_attention(layer: nn.MultiheadAttention, old: nn.MultiheadAttention) -> None:
    if layer.in_proj_weight is not None:
        width = layer.in_proj_weight.shape[1]
        layer.num_heads = old.num_heads * width // old.embed_dim
        layer.embed_dim = layer.kdim = layer.vdim = width
