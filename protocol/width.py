"""Width tiers: the manifest as a narrower device sees it, and where its values lie in the whole model."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from protocol.manifest import Manifest, Segment, Tensor

Places = npt.NDArray[np.int64]
# Of each group, the channels kept, ascending.
Channels = Mapping[str, Places]


def narrowed(manifest: Manifest, variant: str) -> Manifest:
    """The manifest of a bundle whose model is the tier's: the same tensors by name, in smaller shapes, and the tier as
    its only variant. Other variants see the manifest as it is. Raises ConfigurationError for an unknown one.

    No reference: torch's record is of the whole model. The inference graph stays the whole model's too.
    """
    chosen = manifest.variant(variant)
    if not chosen.keep:
        return manifest
    tensors: list[Tensor] = []
    for t in manifest.tensors:
        axes = manifest.axes.get(t.name)
        shape = t.shape if axes is None else tuple(sum(_kept(s, chosen.keep) for s in axis) for axis in axes)
        offset = tensors[-1].offset + tensors[-1].size if tensors else 0
        tensors.append(replace(t, shape=shape, offset=offset))
    only = (replace(chosen, keep={}),)
    return replace(manifest, tensors=tuple(tensors), variants=only, groups=(), axes={}, reference=None)


def places(manifest: Manifest, channels: Channels) -> Places:
    """Where each value of a narrower model lies in the whole one: int64[total of the narrower], no place twice.

    model[places] is the narrower model; model[places] = it puts it back and leaves the rest. Tensors are in manifest
    order, so that places of parameters come first. channels: of every group, ascending and within it.
    """
    found = []
    for t in manifest.tensors:
        axes = manifest.axes.get(t.name)
        inside = np.arange(t.size, dtype=np.int64)
        if axes is not None:
            taken = np.ix_(*(_entries(axis, channels) for axis in axes))
            inside = inside.reshape(t.shape)[taken].ravel()
        found.append(inside + t.offset)
    return np.concatenate(found)


def first_channels(manifest: Manifest, variant: str) -> Channels:
    """The first so many channels of each part of each group as the tier keeps."""
    keep = manifest.variant(variant).keep
    chosen = {}
    for group in manifest.groups:
        part, kept = group.size // group.multiple, keep[group.name] // group.multiple
        starts = np.arange(group.multiple, dtype=np.int64) * part
        chosen[group.name] = (starts[:, None] + np.arange(kept)).ravel()
    return chosen


def _kept(segment: Segment, keep: Mapping[str, int]) -> int:
    return segment.block * (segment.size if segment.group is None else keep[segment.group])


def _entries(axis: tuple[Segment, ...], channels: Channels) -> Places:
    parts, start = [], 0
    for segment in axis:
        kept = np.arange(segment.size, dtype=np.int64) if segment.group is None else channels[segment.group]
        parts.append((start + kept[:, None] * segment.block + np.arange(segment.block)).ravel())
        start += segment.size * segment.block
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
