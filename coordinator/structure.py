"""What of the dense model devices work on: the channels of each width tier, and the mask that the fleet shares.

Kept with every model version and made from nothing else than the version before and the settings, so that a
coordinator that starts again goes on with the same one.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from protocol.width import Channels
from sparse.masks import Mask, Vector, pack_mask, unpack_mask

_HEADER = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Structure:
    """channels: of each tier by name, what it keeps of every group. mask: bool[n_parameters], None where nothing is
    masked. chances: float32[n_parameters], of each weight to be kept, where the fleet learns the mask (vote.py)."""

    channels: Mapping[str, Channels] = field(default_factory=dict)
    mask: Mask | None = None
    chances: Vector | None = None

    @property
    def plain(self) -> bool:
        """Whether every device works on the whole dense model."""
        return not self.channels and self.mask is None

    def named(self, tier: str) -> bytes:
        """Eight bytes that name a tier's choice of channels."""
        said = {group: chosen.tolist() for group, chosen in self.channels[tier].items()}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()[:8]


def pack_structure(structure: Structure) -> bytes:
    """The bytes of a structure: the length of a JSON table, the table, the mask's bits, the chances."""
    mask = structure.mask
    said = {
        "channels": {
            tier: {group: chosen.tolist() for group, chosen in channels.items()}
            for tier, channels in structure.channels.items()
        },
        "mask": None if mask is None else len(mask),
        # Left out where there are none, so that the bytes of such structures are what they always were.
        **({} if structure.chances is None else {"chances": len(structure.chances)}),
    }
    text = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
    chances = b"" if structure.chances is None else structure.chances.astype("<f4").tobytes()
    return _HEADER.pack(len(text)) + text + (b"" if mask is None else pack_mask(mask)) + chances


def unpack_structure(data: bytes) -> Structure:
    """The structure from its bytes, which are our own, checked by digest."""
    (length,) = _HEADER.unpack_from(data)
    end = _HEADER.size + length
    said = json.loads(data[_HEADER.size : end])
    channels = {
        tier: {group: np.array(chosen, dtype=np.int64) for group, chosen in groups.items()}
        for tier, groups in said["channels"].items()
    }
    if said["mask"] is None:
        return Structure(channels)
    bits = end + (said["mask"] + 7) // 8
    chances = np.frombuffer(data[bits:], "<f4").astype(np.float32) if "chances" in said else None
    return Structure(channels, unpack_mask(data[end:bits], said["mask"]), chances)
