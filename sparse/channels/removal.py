"""A smaller module: its tensors cut along their axes, its layers told of their new sizes."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from sparse.structure import Axes, Kept, Structure, places

Module = TypeVar("Module", bound=nn.Module)


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
