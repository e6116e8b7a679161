"""The fleet's public keys in force, numbered; each ring is signed with a release key of the one before.

A ring names the release keys, which sign bundles and rings, and the coordinator's online keys, which sign messages. Who
holds ring n believes ring n + 1 by its signature, so a device that missed some follows them one by one, and nothing but
a release key changes what it believes. The first ring that a device has it gets at enrolment, over TLS.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from protocol.errors import Rejection
from protocol.signing import PUBLIC_BYTES, Signer
from protocol.statements import check, read_statement, state

MAX_KEYS = 8
MAX_RINGS = 1 << 32
# In one message; a device that missed more asks again.
MAX_RINGS_SAID = 16


@dataclass(frozen=True, slots=True)
class OnlineKey:
    """A key (Ed25519, 32 bytes) that the coordinator signs messages with, until it expires (Unix seconds)."""

    key: bytes
    expires: int

    def __post_init__(self) -> None:
        if len(self.key) != PUBLIC_BYTES:
            raise ValueError(f"key: {len(self.key)} bytes where an Ed25519 key has {PUBLIC_BYTES}")


@dataclass(frozen=True, slots=True)
class Ring:
    """version: from 1, each one more than the one before. made: Unix seconds."""

    fleet: str
    version: int
    made: int
    release: tuple[bytes, ...]
    online: tuple[OnlineKey, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.version <= MAX_RINGS:
            raise ValueError(f"version: {self.version} is outside 1..{MAX_RINGS}")
        if not 0 <= self.made < 1 << 48:
            raise ValueError(f"made: {self.made} is no time")
        if not 1 <= len(self.release) <= MAX_KEYS or any(len(key) != PUBLIC_BYTES for key in self.release):
            raise ValueError(f"release: 1 to {MAX_KEYS} Ed25519 keys of {PUBLIC_BYTES} bytes are needed")
        if len(self.online) > MAX_KEYS:
            raise ValueError(f"online: {len(self.online)} keys are over the limit of {MAX_KEYS}")


@dataclass(frozen=True, slots=True)
class Keyring:
    """Coordinator to device, which believes it for the signatures in it alone: the fleet's keys.

    first: the version of the first of the rings; each of the others is the next one.
    """

    first: int
    rings: tuple[bytes, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.rings) <= MAX_RINGS_SAID:
            raise ValueError(f"rings: {len(self.rings)} are outside 1..{MAX_RINGS_SAID}")


def sign_ring(ring: Ring, signer: Signer) -> bytes:
    """The bytes of a ring: a seal (72 bytes), then the record in CBOR."""
    return state("keyring", ring, signer)


def trusted_ring(data: bytes, fleet: str) -> Ring | Rejection:
    """A ring that is known from elsewhere to be right, such as by the connection that it came over."""
    ring = read_statement(Ring, data)
    if isinstance(ring, Ring) and ring.fleet != fleet:
        return Rejection("wrong-fleet", f"these keys are of fleet {ring.fleet!r}, and this is {fleet!r}")
    return ring


def next_ring(held: Ring, data: bytes) -> Ring | Rejection:
    """The ring that follows the one that is held; decoded only when one of its release keys has signed it."""
    wrong = check("keyring", data, held.release)
    if wrong is not None:
        return wrong
    ring = trusted_ring(data, held.fleet)
    if isinstance(ring, Ring) and ring.version != held.version + 1:
        return Rejection("keyring", f"ring {ring.version} does not follow ring {held.version}")
    return ring


def follow(held: Ring, first: int, chain: Sequence[bytes]) -> tuple[Ring, bytes] | Rejection | None:
    """The newest ring that a chain leads to, and its bytes; None where that is the one held. first: the version that
    the chain is said to begin with."""
    begin = held.version + 1 - first
    if begin < 0:
        return Rejection("keyring", f"these rings begin at {first}, and the one held is {held.version}")
    found: tuple[Ring, bytes] | None = None
    for data in chain[begin:]:
        following = next_ring(held, data)
        if isinstance(following, Rejection):
            # What led so far was right.
            return found or following
        held, found = following, (following, data)
    return found
