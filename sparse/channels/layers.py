"""What each kind of layer makes of channels: the tensors and axes they lie in, and which of them go together."""

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

# One entry along an axis of a tensor.
Entry = tuple[str, int, int]
# What is joined to this is kept whole.
FIXED: Entry = ("", 0, 0)


def linked(module: nn.Module) -> Iterator[list[Entry]]:
    """Entries of one layer that go together whatever is around it."""
    for path, layer in module.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(layer, _ConvNd) and layer.groups > 1:
            yield from _of_conv_groups(prefix, layer)
        elif isinstance(layer, nn.GroupNorm) and layer.affine and layer.num_groups > 1:
            step = layer.num_channels // layer.num_groups
            for g in range(layer.num_groups):
                yield [(f"{prefix}weight", 0, i) for i in range(g * step, (g + 1) * step)]
        elif isinstance(layer, nn.MultiheadAttention) and cuttable_attention(layer):
            yield from _of_heads(prefix, layer)
        elif isinstance(layer, nn.RNNBase) and cuttable_recurrence(layer):
            yield from _of_units(prefix, layer)
        elif isinstance(layer, nn.MultiheadAttention | nn.RNNBase):
            for name, tensor in layer.named_parameters():
                yield [FIXED, *((f"{prefix}{name}", a, i) for a, n in enumerate(tensor.shape) for i in range(n))]


def _of_conv_groups(prefix: str, layer: _ConvNd) -> Iterator[list[Entry]]:
    if depthwise(layer):
        step = layer.out_channels // layer.groups
        for g in range(layer.groups):
            yield [(f"{prefix}weight", 0, i) for i in range(g * step, (g + 1) * step)]
        return
    # The axis that is not shared by the groups: outputs, of a transposed convolution inputs.
    step = layer.weight.shape[0] // layer.groups
    for place in range(step):
        yield [(f"{prefix}weight", 0, g * step + place) for g in range(layer.groups)]
    if layer.transposed and layer.bias is not None:
        step = layer.out_channels // layer.groups
        for place in range(step):
            yield [(f"{prefix}bias", 0, g * step + place) for g in range(layer.groups)]


def _of_heads(prefix: str, layer: nn.MultiheadAttention) -> Iterator[list[Entry]]:
    width, size = layer.embed_dim, layer.head_dim
    for head in range(layer.num_heads):
        own = range(head * size, (head + 1) * size)
        entries = [(f"{prefix}in_proj_weight", 0, part * width + i) for part in range(3) for i in own]
        if layer.in_proj_bias is not None:
            entries += [(f"{prefix}in_proj_bias", 0, part * width + i) for part in range(3) for i in own]
        yield entries + [(f"{prefix}out_proj.weight", 1, i) for i in own]


def _of_units(prefix: str, layer: nn.RNNBase) -> Iterator[list[Entry]]:
    size = layer.hidden_size
    for unit in range(size):
        entries = []
        for name, tensor in layer.named_parameters():
            entries += [(f"{prefix}{name}", 0, row) for row in range(unit, tensor.shape[0], size)]
            if tensor.ndim == 2 and name != "weight_ih_l0":
                entries.append((f"{prefix}{name}", 1, unit))
        yield entries


def axes_of(layer: nn.Module, out: bool) -> tuple[tuple[str, int], ...] | None:
    """Tensors and axes of the channels that leave a layer, or that enter it; None if they cannot be told apart."""
    if isinstance(layer, _ConvNd):
        if out:
            return (("weight", 1 if layer.transposed else 0), ("bias", 0))
        return (("weight", 0 if layer.transposed or depthwise(layer) else 1),)
    if isinstance(layer, nn.Linear):
        return (("weight", 0), ("bias", 0)) if out else (("weight", 1),)
    if isinstance(layer, nn.Embedding):
        return (("weight", 1),)
    if isinstance(layer, _NormBase):
        return (("weight", 0), ("bias", 0), ("running_mean", 0), ("running_var", 0))
    if isinstance(layer, nn.GroupNorm) and (layer.affine or layer.num_groups == 1):
        return (("weight", 0), ("bias", 0))
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return (("weight", 0), ("bias", 0))
    if isinstance(layer, nn.PReLU):
        return (("weight", 0),) if layer.num_parameters > 1 else ()
    return None


def depthwise(layer: _ConvNd) -> bool:
    return layer.groups > 1 and layer.groups == layer.in_channels and not layer.transposed


def cuttable_attention(layer: nn.MultiheadAttention) -> bool:
    # The others have weights of their own for keys and values, which are kept whole.
    return layer._qkv_same_embed_dim and layer.bias_k is None


def cuttable_recurrence(layer: nn.RNNBase) -> bool:
    return not layer.bidirectional and layer.proj_size == 0
