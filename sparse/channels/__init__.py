"""Channels of a torch module: which belong together, and a smaller module without the less important ones."""

from sparse.channels.groups import channel_structure
from sparse.channels.removal import cut, remove_channels
from sparse.channels.scores import channel_scores
from sparse.structure import ChannelGroup, Segment, counts, places

__all__ = [
    "ChannelGroup",
    "Segment",
    "channel_scores",
    "channel_structure",
    "counts",
    "cut",
    "places",
    "remove_channels",
]
