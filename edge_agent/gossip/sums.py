"""What a device keeps under RelaySum, and how a sum travels: how many models are in it, then the sum by a codec."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from sparse.gossip.choco import Compressor
from sparse.gossip.relay import Relay, Relayed

Vector = npt.NDArray[np.float32]
COUNT_BYTES = 4
# Of each neighbour: that of the exchange at hand, and that of the next, which a neighbour may be at already.
HELD = 2


@dataclass(frozen=True, slots=True)
class Sums:
    """fill: float32[d], the model that the epoch began with, in place of those that have not come yet. heard: by
    neighbour, oldest first. said, number: what each neighbour was sent last, and in which exchange. estimate: ||x - y||
    of the last exchange."""

    fill: Vector
    heard: Mapping[str, tuple[Relayed, ...]] = field(default_factory=dict)
    said: Mapping[str, bytes] = field(default_factory=dict)
    number: int = 0
    estimate: float = 0.0


def newest(sums: Sums, neighbour: str) -> int:
    """The exchange of the newest sum that is held of a neighbour, 0 before any."""
    held = sums.heard.get(neighbour)
    return held[-1].number if held else 0


def taken(sums: Sums, neighbour: str, message: Relayed) -> Sums:
    """With a message that is newer than those that are held."""
    held = (*sums.heard.get(neighbour, ()), message)[-HELD:]
    return replace(sums, heard={**sums.heard, neighbour: held})


def held_at(sums: Sums, neighbours: Sequence[str], number: int) -> Relay:
    """What the rule sees in an exchange: of each neighbour the sum of this number, or the newest where that one has not
    come. Neighbours by their places. Before the first exchange, whose number is 1, there is none."""
    heard = {}
    for place, neighbour in enumerate(neighbours):
        held = sums.heard.get(neighbour)
        if held and number > 0:
            heard[place] = next((message for message in held if message.number == number), held[-1])
    return Relay(tuple(range(len(neighbours))), heard)


def pack(message: Relayed, compressor: Compressor) -> bytes:
    return message.count.to_bytes(COUNT_BYTES, "little") + compressor.encode(message.total, 0)


def unpack(payload: bytes, number: int, d: int, compressor: Compressor) -> Relayed:
    """A sum of d values, and of any count. Raises PayloadError."""
    count = int.from_bytes(payload[:COUNT_BYTES], "little")
    return Relayed(compressor.decode(payload[COUNT_BYTES:], d), count, number)
