"""Channels: what belongs together, held against torch-pruning's own removal and against channels of zeros."""

import copy
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch_pruning
from torch import Tensor, nn

from benchmarks.zoo import ZOO, spec_of
from sparse.channels import ChannelGroup, Segment, channel_structure, counts, cut, places
from sparse.channels.removal import Module
from sparse.structure import Axes, Places, length

# Those that torch-pruning removes rightly by itself; it takes attention apart within heads, and leaves LSTMs broken.
BY_TORCH_PRUNING = tuple(name for name in ZOO if name not in ("transformer", "lstm"))


def drawn(groups: tuple[ChannelGroup, ...], keep: float, seed: int = 1) -> dict[str, Places]:
    rng = np.random.default_rng(seed)
    number = counts(groups, keep)
    return {g.name: np.sort(rng.permutation(g.size)[: number[g.name]]).astype(np.int64) for g in groups}


def lively(module: Module) -> Module:
    """The module in evaluation mode with nothing at 0 or 1, so that every tensor matters."""
    torch.manual_seed(5)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.data = torch.rand_like(tensor) + (0.5 if name.endswith("var") else -0.2)
    return module.eval()


def zeroed(module: Module, structure: Mapping[str, Axes], kept: Mapping[str, Places]) -> Module:
    """A copy where all parameters of channels that are not kept are zero."""
    copied = copy.deepcopy(module)
    parameters = dict(copied.named_parameters())
    for name, axes in structure.items():
        for axis, segments in enumerate(axes if name in parameters else ()):
            held = torch.zeros(length(segments))
            held[torch.from_numpy(places(segments, kept))] = 1
            parameters[name].data *= held.reshape([-1 if a == axis else 1 for a in range(len(axes))])
    return copied


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(torch.allclose(a, b, rtol=1e-4, atol=1e-5 * float(b.detach().abs().max() + 1)))


@pytest.mark.parametrize("name", BY_TORCH_PRUNING)
def test_cutting_by_the_structure_is_what_torch_pruning_removes(name: str) -> None:
    spec = spec_of(name, 2)
    module = lively(spec.module)
    groups, structure = channel_structure(module, spec.input_tensors)
    kept = drawn(groups, 0.5)
    theirs = copy.deepcopy(module)
    graph = torch_pruning.DependencyGraph().build_dependency(theirs, spec.input_tensors, verbose=False)
    for group in groups:
        layer = theirs.get_submodule(group.name)
        pruner = graph.get_pruner_of_module(layer)
        (segment,) = structure[f"{group.name}.weight"][0]
        removed = np.setdiff1d(np.arange(pruner.get_out_channels(layer)), places([segment], kept))
        graph.get_pruning_group(layer, pruner.prune_out_channels, removed.tolist()).prune()
    for layer in theirs.modules():
        if isinstance(layer, nn.GroupNorm):
            # torch-pruning keeps the number of groups, and so lets what is left be normalised with other neighbours.
            layer.num_groups //= 2
    assert close(cut(module, structure, kept)(spec.inputs), theirs(spec.inputs))


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("keep", [0.5, 0.25])
def test_removing_channels_whose_weights_are_zero_leaves_the_outputs(name: str, keep: float) -> None:
    spec = spec_of(name, 2)
    module = lively(spec.module)
    groups, structure = channel_structure(module, spec.input_tensors)
    kept = drawn(groups, keep)
    if name == "transformer":
        # LayerNorm counts zeros among its features: heads and embedding are tried on attention without it, below.
        kept = {group: channels for group, channels in kept.items() if group.endswith("linear1")}
        assert len(kept) == 2
    zeros = zeroed(module, structure, kept)
    smaller = cut(zeros, structure, kept)
    assert close(smaller(spec.inputs), zeros(spec.inputs))
    size = {m: sum(p.numel() for p in m.parameters()) for m in (module, smaller)}
    assert size[smaller] < (1 if name == "transformer" else 0.4) * size[module]


class Attention(nn.Module):
    """Two layers of attention with residuals and no norms, heads of unlike widths."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 24)
        self.first = nn.MultiheadAttention(24, 2, batch_first=True)
        self.second = nn.MultiheadAttention(24, 4, bias=False, batch_first=True)
        self.head = nn.Linear(24, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        x = x + self.first(x, x, x)[0]
        x = x + self.second(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def test_attention_loses_whole_heads_and_its_embedding_as_many_channels() -> None:
    module, words = lively(Attention()), torch.randint(0, 10, (2, 5))
    groups, structure = channel_structure(module, (words,))
    assert groups == (ChannelGroup("words", 24, 12), ChannelGroup("first", 2, 1), ChannelGroup("second", 4, 2))
    assert structure["first.in_proj_weight"] == ((Segment("first", 2, 12),) * 3, (Segment("words", 24),))
    kept = drawn(groups, 0.5)
    zeros = zeroed(module, structure, kept)
    smaller = cut(zeros, structure, kept)
    assert (smaller.first.num_heads, smaller.second.num_heads, smaller.words.embedding_dim) == (1, 2, 12)
    assert close(smaller(words), zeros(words))


class Branches(nn.Module):
    """Concat, a grouped convolution, one with two filters a channel, halves that meet, a residual with the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 16, 3, padding=1)
        self.grouped = nn.Conv2d(24, 32, 3, padding=1, groups=4)
        self.wide = nn.Conv2d(32, 64, 3, padding=1, groups=32)
        self.halves = nn.Conv2d(64, 20, 1)
        self.back = nn.Conv2d(10, 4, 1)
        self.up = nn.ConvTranspose2d(4, 6, 2, 2)
        self.act = nn.PReLU(6)
        self.head = nn.Linear(6 * 64, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x).relu(), self.b(x)], 1)
        y = self.halves(self.wide(self.grouped(y).relu()))
        left, right = y.chunk(2, 1)
        x = x + self.back(left * right.sigmoid())
        return self.head(self.act(self.up(x)).flatten(1))  # type: ignore[no-any-return]


def test_concats_groups_halves_and_inputs_are_told_apart() -> None:
    module, x = lively(Branches()), torch.randn(2, 4, 4, 4)
    groups, structure = channel_structure(module, (x,))
    assert "back.weight" in structure
    # What is added to the input is as wide as it.
    assert structure["back.weight"][0] == (Segment(None, 4),)
    assert structure["halves.weight"][0] == (Segment("halves", 10),) * 2
    assert structure["wide.weight"][0] == (Segment("grouped", 8, 2),) * 4
    assert structure["head.weight"] == ((Segment(None, 3),), (Segment("up", 6, 64),))
    kept = drawn(groups, 0.5)
    zeros = zeroed(module, structure, kept)
    smaller = cut(zeros, structure, kept)
    assert close(smaller(x), zeros(x))
    assert (smaller.grouped.groups, smaller.wide.groups, smaller.wide.out_channels) == (4, 16, 32)


def test_a_share_that_leaves_a_group_nothing_is_refused_with_the_nearest_that_works() -> None:
    groups = (ChannelGroup("wide", 64), ChannelGroup("narrow", 3), ChannelGroup("embedding", 64, 16))
    with pytest.raises(ValueError, match=r"keep: 0\.1 leaves none of the 3 channels of 'narrow'.* 0\.167$"):
        counts(groups, 0.1)
    assert counts(groups, 0.167) == {"wide": 11, "narrow": 1, "embedding": 16}
    with pytest.raises(ValueError, match=r"'embedding', which go 16 at a time; the nearest that works is 0\.125"):
        counts(groups[::2], 0.1)
    for wrong in (0.0, -1.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"outside 0\.\.1"):
            counts(groups, wrong)
    with pytest.raises(ValueError, match="no channels that can be removed"):
        counts((), 0.5)
