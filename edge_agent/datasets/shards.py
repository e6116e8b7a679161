"""The seam of data adapters: a reader turns files into shards, and says of each bad file what is wrong with it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_agent.datasets.examples import Scaling
from edge_agent.datasets.listing import Listing
from edge_agent.datasets.settings import DataSettings
from protocol.errors import DataError
from protocol.manifest import Port

# What the model takes, by the names that the settings give its inputs and then its targets.
Ports = Mapping[str, Port]


@dataclass(frozen=True, slots=True)
class Shard:
    """Arrays, or `FileRows`, by the names in the settings, with one row for each example, unchecked.

    where: file or function, for messages. scaling: of arrays stored smaller than they are meant. unreadable: examples
    that were there and could not be read; said: the first of them, by its place.
    """

    where: str
    arrays: Mapping[str, Any]
    scaling: Mapping[str, Scaling] = field(default_factory=dict)
    unreadable: int = 0
    said: str = ""


@dataclass(frozen=True, slots=True)
class BadFile:
    """A file that cannot be used, and why, by its name."""

    why: str


# Raises DataError for what is wrong with the settings; what is wrong with one file is a BadFile.
Reader = Callable[[DataSettings, Ports, Listing], Iterator[Shard | BadFile]]


def only(settings: DataSettings, ports: Ports, kind: str) -> tuple[str, str]:
    """The names of the one input and the one target that sounds and pictures have."""
    if len(settings.inputs) != 1 or len(settings.targets) != 1:
        raise DataError(f"data.kind: {kind} gives one input and one target; the bundle has {len(ports)} in all")
    return settings.inputs[0], settings.targets[0]


def check_room(settings: DataSettings, where: str, needed_bytes: int) -> None:
    """Raises DataError before more is taken than the settings allow."""
    if needed_bytes > settings.memory_bytes:
        raise DataError(
            f"{where}: takes {needed_bytes >> 20} MiB of memory, over data.memory_mib = {settings.memory_mib}; "
            "raise that, use fewer files, or save the examples as .npy files, which stay on the disk"
        )
