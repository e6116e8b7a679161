"""Groups of channels: what stands or falls together in a network, as segments along the axes of its tensors.

The way of a channel through a network is traced with torch-pruning's dependency graph (Fang et al., "DepGraph: Towards
Any Structural Pruning", CVPR 2023): a channel's entries are all that its removal would touch, over residuals, concats,
depthwise convolutions and flattening. We ask it for one channel at a time and join what it says, so that channels
that meet anywhere are one; the removal itself is ours, from that structure, because other parts cut by it too.

What is ours to decide: inputs and outputs of the model are kept whole. Grouped convolutions lose the same channels in
each group; GroupNorm loses whole groups, so that the others normalise as before. nn.MultiheadAttention loses whole
heads, and its embedding as many channels as they had. LSTM, GRU and RNN lose units, in all layers alike.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from sparse.channels.layers import FIXED, Entry, cuttable_attention, linked
from sparse.channels.tracing import touched
from sparse.structure import Axes, ChannelGroup, Segment

Component = tuple[Entry, ...]


def channel_structure(
    module: nn.Module, examples: tuple[Tensor, ...]
) -> tuple[tuple[ChannelGroup, ...], dict[str, Axes]]:
    """The groups of channels that can be removed, and the segments of each axis of each tensor that holds some.

    Tensors are parameters and buffers by their first name; those not named are whole. The module is left as it is.
    """
    sizes, aliases = _shapes(module), _first_names(module)
    joined = _Joined()
    for entries in (*linked(module), *touched(module, examples)):
        joined.join(e for e in entries if e == FIXED or e[0] in aliases)
    order = {name: place for place, name in enumerate(sizes)}
    while True:
        groups, structure = _segmented(joined.components(aliases, order), sizes)
        uneven = list(_uneven(module, aliases, {g.name: g for g in groups}, structure))
        if not uneven:
            return _with_multiples(module, aliases, groups, structure), structure
        for entries in uneven:
            joined.join(entries)


class _Joined:
    """Entries that are removed together: a union-find."""

    def __init__(self) -> None:
        self._parent: dict[Entry, Entry] = {}

    def join(self, entries: Iterable[Entry]) -> None:
        first: Entry | None = None
        for entry in entries:
            root = self._root(entry)
            if first is None:
                first = root
            else:
                self._parent[root] = first

    def components(self, aliases: Mapping[str, str], order: Mapping[str, int]) -> list[Component]:
        """What can be removed, each in the order of tensors, axes and entries, and so all of them."""
        for entry in list(self._parent):
            if entry != FIXED and aliases[entry[0]] != entry[0]:
                self.join([(aliases[entry[0]], *entry[1:]), entry])
        found: dict[Entry, list[Entry]] = defaultdict(list)
        for entry in self._parent:
            found[self._root(entry)].append(entry)
        free = [
            tuple(sorted((e for e in members if aliases[e[0]] == e[0]), key=lambda e: (order[e[0]], e[1], e[2])))
            for members in found.values()
            if FIXED not in members
        ]
        return sorted(free, key=lambda c: (order[c[0][0]], c[0][1], c[0][2]))

    def _root(self, entry: Entry) -> Entry:
        parent = self._parent.setdefault(entry, entry)
        while parent != entry:
            self._parent[entry] = self._parent[parent]
            entry, parent = parent, self._parent[parent]
        return entry


def _attention(module: nn.Module, aliases: Mapping[str, str]) -> Iterator[tuple[nn.MultiheadAttention, str, str]]:
    """Each attention whose heads can be removed, and the names of its projections into heads and out of them."""
    for path, layer in module.named_modules():
        if isinstance(layer, nn.MultiheadAttention) and cuttable_attention(layer):
            prefix = f"{path}." if path else ""
            yield layer, aliases[f"{prefix}in_proj_weight"], aliases[f"{prefix}out_proj.weight"]


def _uneven(
    module: nn.Module, aliases: Mapping[str, str], groups: Mapping[str, ChannelGroup], structure: Mapping[str, Axes]
) -> Iterator[list[Entry]]:
    """What stays because an attention's embedding and heads could not shrink together, as its layer demands."""
    for layer, into, out in _attention(module, aliases):
        axes = {(name, a): structure[name][a] for name in (into, out) if name in structure for a in (0, 1)}
        embeddings = [axes.get((into, 1), ()), axes.get((out, 0), ())]
        heads = axes.get((out, 1), ())
        cut = [s for segments in axes.values() for s in segments if s.group is not None]
        even = heads and all(
            len(e) == 1 and e[0].group is not None and groups[e[0].group].size == layer.embed_dim for e in embeddings
        )
        if cut and not (even and heads[0].group is not None):
            width = layer.embed_dim
            entries = [(into, 1, i) for i in range(width)] + [(out, a, i) for a in (0, 1) for i in range(width)]
            yield [FIXED, *entries]


def _with_multiples(
    module: nn.Module, aliases: Mapping[str, str], groups: list[ChannelGroup], structure: Mapping[str, Axes]
) -> tuple[ChannelGroup, ...]:
    """Where there is attention, the embedding shrinks by whole heads of every layer that it meets."""
    multiples = {g.name: g.multiple for g in groups}
    pairs = []
    for layer, into, out in _attention(module, aliases):
        if out in structure and (heads := structure[out][1][0].group) is not None:
            for segment in (structure[into][1][0], structure[out][0][0]):
                assert segment.group is not None
                multiples[segment.group] = math.lcm(multiples[segment.group], layer.head_dim)
                pairs.append((segment.group, heads, layer.head_dim))
    for embedding, heads, size in pairs:
        multiples[heads] = math.lcm(multiples[heads], multiples[embedding] // size)
    return tuple(replace(g, multiple=multiples[g.name]) for g in groups)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in (*module.named_parameters(), *module.named_buffers())}


def _first_names(module: nn.Module) -> dict[str, str]:
    """Of every name of a tensor, the first that it has."""
    first: dict[int, str] = {}
    names = {}
    everything = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    for name, tensor in everything:
        names[name] = first.setdefault(id(tensor), name)
    return names


def _segmented(
    components: list[Component], sizes: Mapping[str, tuple[int, ...]]
) -> tuple[list[ChannelGroup], dict[str, Axes]]:
    """Groups are of channels that lie in the same axes. One whose channels do not lie in order stays whole."""
    alike: dict[tuple[tuple[str, int], ...], list[Component]] = defaultdict(list)
    for component in components:
        counted = Counter(entry[:2] for entry in component)
        alike[tuple(sorted(counted.elements()))].append(component)
    named = dict(zip(_names(alike.values()), alike.values(), strict=True))
    while True:
        held: dict[tuple[str, int], dict[int, tuple[str, int]]] = defaultdict(dict)
        for name, members in named.items():
            for channel, component in enumerate(members):
                for tensor, axis, place in component:
                    held[tensor, axis][place] = (name, channel)
        axes = {
            (tensor, axis): _runs([found.get(i) for i in range(sizes[tensor][axis])])
            for (tensor, axis), found in held.items()
        }
        broken = {s.group for segments in axes.values() for s in segments if s.group and s.size != len(named[s.group])}
        if not broken:
            break
        named = {name: members for name, members in named.items() if name not in broken}
    structure = {
        name: tuple(axes.get((name, a), (Segment(None, n),)) for a, n in enumerate(shape))
        for name, shape in sizes.items()
        if any((name, a) in axes for a in range(len(shape)))
    }
    return [ChannelGroup(name, len(members)) for name, members in named.items()], structure


def _names(groups: Iterable[list[Component]]) -> list[str]:
    """Each after the layer where its channels begin."""
    taken: Counter[str] = Counter()
    names = []
    for members in groups:
        layer = members[0][0][0].rpartition(".")[0] or members[0][0][0]
        taken[layer] += 1
        names.append(layer if taken[layer] == 1 else f"{layer}:{taken[layer]}")
    return names


def _runs(places: Sequence[tuple[str, int] | None]) -> tuple[Segment, ...]:
    """An axis as segments: runs of channels 0, 1, 2... of a group, in equal blocks."""
    segments = []
    start = 0
    while start < len(places):
        first = places[start]
        end = start + 1
        while end < len(places) and places[end] == first:
            end += 1
        block = end - start
        if first is None:
            segments.append(Segment(None, block))
            start = end
            continue
        name, channel = first
        size = 1
        while channel == 0 and places[end : end + block] == [(name, size)] * block:
            size, end = size + 1, end + block
        segments.append(Segment(name, size if channel == 0 else 0, block))
        start = end
    return tuple(segments)
