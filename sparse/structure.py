"""Where channels lie: groups of channels that are removed alike, and which entries of each tensor are theirs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ChannelGroup:
    """`size` channels that are removed alike wherever they pass. How many are kept must divide by `multiple`."""

    name: str
    size: int
    multiple: int = 1


@dataclass(frozen=True, slots=True)
class Segment:
    """Along a tensor's axis: `size` channels of `group`, in channel order, `block` neighbouring entries each.

    `group` None: `size * block` entries that are always kept.
    """

    group: str | None
    size: int
    block: int = 1


Axes = tuple[tuple[Segment, ...], ...]
# By tensor name, the segments of each of its axes; a tensor that is not named is kept whole.
Structure = Mapping[str, Axes]
# By group name, the channels that are kept, in rising order; a group that is not named is kept whole.
Kept = Mapping[str, Places]


def counts(groups: Sequence[ChannelGroup], keep: float) -> dict[str, int]:
    """How many channels of each group are kept: round(keep * size), halves upwards, to what the group divides by.

    Raises ValueError for a keep outside 0..1, or one that leaves a group nothing, with the nearest that works.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep: {keep:g} is outside 0..1; 1 keeps every channel, 0.5 half of each group")
    if not groups:
        raise ValueError("keep: the model has no channels that can be removed; prune single weights instead (sparsity)")
    found = {g.name: math.floor(keep * g.size / g.multiple + 0.5) * g.multiple for g in groups}
    empty = [g for g in groups if found[g.name] == 0]
    if empty:
        # The last of them to appear as keep rises.
        last = min(empty, key=lambda g: g.size / g.multiple)
        least = math.ceil(500 * last.multiple / last.size) / 1000
        raise ValueError(
            f"keep: {keep:g} leaves none of the {last.size} channels of {last.name!r}"
            f"{_in_steps(last)}; the nearest that works is {least:g}"
        )
    return found


def _in_steps(group: ChannelGroup) -> str:
    return f", which go {group.multiple} at a time" if group.multiple > 1 else ""


def places(segments: Sequence[Segment], kept: Kept) -> Places:
    """The entries of an axis that stay: int64, rising."""
    parts: list[Places] = []
    start = 0
    for segment in segments:
        channels = np.arange(segment.size)
        if segment.group is not None and segment.group in kept:
            channels = kept[segment.group]
        entries = start + channels[:, None] * segment.block + np.arange(segment.block)
        parts.append(entries.ravel().astype(np.int64))
        start += segment.size * segment.block
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def length(segments: Sequence[Segment]) -> int:
    """How many entries the axis has before anything is removed."""
    return sum(segment.size * segment.block for segment in segments)
