"""The way of channels through a network, by torch-pruning's dependency graph of a copy."""

import copy
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from sparse.channels.layers import FIXED, Entry, axes_of, cuttable_attention, cuttable_recurrence, depthwise


def touched(module: nn.Module, examples: tuple[Tensor, ...]) -> Iterator[list[Entry]]:
    """For each channel of each layer, all that its removal touches."""
    traced, sources = _traceable(module, examples)
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(_Traced(traced, sources), examples, verbose=False)
    paths: dict[object, str] = {layer: path for path, layer in traced.named_modules()}
    paths |= {parameter: path for path, parameter in traced.named_parameters()}
    for layer in list(graph.module2node):
        if not isinstance(layer, _ConvNd | nn.Linear | nn.Embedding):
            continue
        pruner = graph.get_pruner_of_module(layer)
        for channel in range(pruner.get_out_channels(layer)):
            touched: list[Entry] = []
            for dependency, channels in graph.get_pruning_group(layer, pruner.prune_out_channels, [channel]):
                target = dependency.target.module
                out = dependency.handler == graph.get_pruner_of_module(target).prune_out_channels
                touched += _entries(traced, paths, target, out, channels, dependency.target.pruning_dim)
            yield touched


def _entries(
    traced: nn.Module, paths: Mapping[object, str], layer: object, out: bool, channels: Sequence[int], axis: int
) -> Iterator[Entry]:
    """Where these channels lie in a layer's tensors, or that they must stay."""
    if isinstance(layer, nn.Parameter):
        yield from ((paths[layer], axis % layer.ndim, i) for i in channels)
    elif isinstance(layer, torch_pruning.ops._OutputOp | _Source):
        yield FIXED
    elif isinstance(layer, nn.Module) and layer in paths:
        parent, _, _ = paths[layer].rpartition(".")
        owner = traced.get_submodule(parent)
        prefix = f"{paths[layer]}." if paths[layer] else ""
        if isinstance(owner, _Reads | _Remembers):
            yield from ((f"{parent}.{s}", a, i) for s, a in owner.axes(out) for i in channels)
        elif axes_of(layer, out) is None:
            yield FIXED
        else:
            for suffix, axis in axes_of(layer, out) or ():
                tensor = getattr(layer, suffix)
                if tensor is not None:
                    width, step = _extent(layer, tensor, axis, out)
                    yield from ((f"{prefix}{suffix}", axis, k) for i in channels for k in _rows(i, width, step))


def _rows(channel: int, width: int, step: int) -> range:
    """The entries of a channel along an axis of `width` blocks of `step`, which is repeated for each conv group."""
    return range(channel % width * step, (channel % width + 1) * step)


def _extent(layer: nn.Module, tensor: Tensor, axis: int, out: bool) -> tuple[int, int]:
    if isinstance(layer, _ConvNd) and depthwise(layer) and not out:
        # What enters a depthwise convolution of several filters a channel is read by that many rows.
        return layer.in_channels, layer.out_channels // layer.in_channels
    return tensor.shape[axis], 1


def _traceable(module: nn.Module, examples: tuple[Tensor, ...]) -> tuple[nn.Module, list[nn.Module]]:
    """A copy to trace, where attention and recurrence are one layer each, and a layer for each of its inputs."""
    traced = copy.deepcopy(module).eval()
    for path, layer in list(traced.named_modules()):
        stand_in: nn.Module | None = None
        if isinstance(layer, nn.MultiheadAttention) and cuttable_attention(layer):
            stand_in = _Reads(layer.embed_dim)
        elif isinstance(layer, nn.RNNBase) and cuttable_recurrence(layer):
            stand_in = _Remembers(layer)
        if stand_in is not None:
            if not path:
                raise ValueError(f"module: a bare {type(layer).__name__} has no channels inside; put layers around it")
            parent, _, name = path.rpartition(".")
            setattr(traced.get_submodule(parent), name, stand_in)
    for parameter in traced.parameters():
        parameter.requires_grad_(True)
    return traced, [_Source(x.shape[1]) if x.is_floating_point() and x.ndim > 1 else nn.Identity() for x in examples]


class _Traced(nn.Module):
    def __init__(self, module: nn.Module, sources: list[nn.Module]) -> None:
        super().__init__()
        self.module, self.sources = module, nn.ModuleList(sources)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        given = self.module(*(source(x) for source, x in zip(self.sources, inputs, strict=True)))
        # A step behind each output, so that none of them is a layer's own.
        return [y * 1.0 for y in ((given,) if isinstance(given, Tensor) else given)]


class _Source(nn.PReLU):
    """Where data enters the traced copy: a layer, so that channels that meet the input are seen to."""


class _Reads(nn.Module):
    """Attention in the traced copy: one linear layer, which reads the embedding and writes it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        # Looked at by the layers of nn.TransformerEncoder, which then do not take their fused path.
        self.batch_first, self._qkv_same_embed_dim, self.in_proj_bias, self.num_heads = False, True, None, 1

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: object) -> tuple[Tensor, None]:
        read = query
        for other in (key, value):
            # Channels of all three meet; their sequences may differ in length.
            read = read + other.mean(dim=-2, keepdim=True) if other is not query else read
        return self.linear(read), None

    def axes(self, out: bool) -> tuple[tuple[str, int], ...]:
        return (("out_proj.weight", 0), ("out_proj.bias", 0)) if out else (("in_proj_weight", 1),)


class _Remembers(nn.Module):
    """A recurrent layer in the traced copy: one linear layer from inputs to units."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.linear = nn.Linear(layer.input_size, layer.hidden_size)
        self._time, self._layers, self._lstm = (1 if layer.batch_first else 0), layer.num_layers, layer.mode == "LSTM"

    def forward(self, x: Tensor, state: object = None) -> tuple[Tensor, object]:
        y = self.linear(x)
        last = torch.stack([y.mean(self._time)] * self._layers)
        return y, (last, last) if self._lstm else last

    def axes(self, out: bool) -> tuple[tuple[str, int], ...]:
        return (("weight_hh_l0", 1),) if out else (("weight_ih_l0", 1),)
