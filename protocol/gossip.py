"""What devices without a hub say to each other, and what the coordinator tells them: who their neighbours are.

    coordinator -> device      Membership   of an epoch: neighbours, weights, codec, gamma, from which start
    coordinator -> device      Effort       steps and exchanges from now on (consensus control)
    device -> its neighbours   Part         a piece of a payload: of CHOCO published once on a topic that all neighbours
                                            read, of RelaySum on a topic of that neighbour's own
    device -> one neighbour    Want         a payload that did not come, or pieces of it
    device -> coordinator      Standing     how far it is, and how far from its neighbours

A payload is named by its sender, epoch and number: number 0 is the model that the sender begins the epoch with, whole;
number t is what it says in the t-th exchange: a difference, or a sum. It travels in parts that fit a
message; whoever misses some asks for these.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

# As of a blob's chunks: what every broker in use takes, with an envelope round it.
PART_BYTES = 64 * 1024 - 1024
MAX_PAYLOAD_BYTES = 1 << 30
MAX_PARTS = -(-MAX_PAYLOAD_BYTES // PART_BYTES)
# Of a fully connected fleet this is the largest; each costs its neighbours' differences every round.
MAX_NEIGHBOURS = 256
# Asked for in one message.
MAX_WANTED = 64
MAX_NUMBER = 1 << 32
DIGEST_BYTES = 32

# Who waits for whom, and for how long: see edge_agent/gossip/node.py and relay_node.py.
Algorithm = Literal["choco", "relay"]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """weight: what a device's vector counts in this one's mean. newcomer: it has no model of its own yet. key: by which
    what it says is believed (SubjectPublicKeyInfo, DER), None in fleets without identities. subtree: of a tree, how
    many devices lie that way, the neighbour included; None on other graphs."""

    device: str
    weight: float
    newcomer: bool = False
    key: bytes | None = None
    subtree: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.weight < 1.0:
            raise ValueError(f"weight: {self.weight} must be above 0 and below 1")
        if self.subtree is not None:
            _check("subtree", self.subtree, 1)


@dataclass(frozen=True, slots=True)
class Effort:
    """Local steps between two exchanges, and exchanges after each training, from the next training on."""

    local_steps: int = 1
    gossip_rounds: int = 1

    def __post_init__(self) -> None:
        _check("local_steps", self.local_steps, 1)
        _check("gossip_rounds", self.gossip_rounds, 1, MAX_WANTED)


@dataclass(frozen=True, slots=True)
class Membership:
    """A device's place in an epoch. What it is told of its own weight is what its neighbours' leave of 1.

    after: the number of the epoch before that is completed first, so that all leave it together; 0 at once. newcomer:
    the device begins at the mean of its neighbours that are none, or at the common start where all are. begun:
    exchanges of the run before this epoch, the same for all; with them a number is a place in the run (Task.until).
    Said again in the same epoch it may bring other keys of neighbours, who have renewed theirs: those said last hold.
    algorithm: of `relay` the neighbours are those of a tree, and patience_s is how long an exchange waits for what is
    missing before it goes on with what was heard last; `choco` waits for as long as it takes.
    """

    run: str
    epoch: int
    neighbours: tuple[Neighbour, ...]
    codec: str
    gamma: float
    after: int = 0
    newcomer: bool = False
    effort: Effort = field(default_factory=Effort)
    begun: int = 0
    algorithm: Algorithm = "choco"
    patience_s: float = 60.0

    def __post_init__(self) -> None:
        _check("epoch", self.epoch, 1)
        _check("after", self.after)
        _check("begun", self.begun)
        if len(self.neighbours) > MAX_NEIGHBOURS:
            raise ValueError(f"neighbours: {len(self.neighbours)} are more than {MAX_NEIGHBOURS}")
        if len({n.device for n in self.neighbours}) != len(self.neighbours):
            raise ValueError("neighbours: one is named twice")
        if not 0.0 < self.gamma <= 1.0:
            raise ValueError(f"gamma: {self.gamma} must be above 0 and at most 1")
        if not 0.0 < self.patience_s < float("inf"):
            raise ValueError(f"patience_s: {self.patience_s} must be positive and finite")
        if self.algorithm == "relay" and any(n.subtree is None for n in self.neighbours):
            raise ValueError("neighbours: of relay, each has the number of devices that lie its way")
        if not -1e-9 <= self.own_weight <= 1.0:
            raise ValueError(f"neighbours: their weights sum to {1 - self.own_weight}, which is more than 1")

    @property
    def own_weight(self) -> float:
        return 1.0 - sum(n.weight for n in self.neighbours)

    @property
    def devices(self) -> int:
        """Of a tree, all that are in it."""
        return 1 + sum(n.subtree or 0 for n in self.neighbours)

    @property
    def weights(self) -> dict[str, float]:
        return {n.device: n.weight for n in self.neighbours}


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a payload, by its place among `parts`. size, digest: of the whole (SHA-256, 32 bytes)."""

    epoch: int
    number: int
    place: int
    parts: int
    size: int
    digest: bytes
    data: bytes

    def __post_init__(self) -> None:
        _check("epoch", self.epoch, 1)
        _check("number", self.number)
        _check("size", self.size, 1, MAX_PAYLOAD_BYTES)
        if self.parts != -(-self.size // PART_BYTES):
            raise ValueError(f"parts: {self.parts} cannot make up size: {self.size}")
        _check("place", self.place, 0, self.parts - 1)
        if len(self.digest) != DIGEST_BYTES:
            raise ValueError(f"digest: {len(self.digest)} bytes where SHA-256 has {DIGEST_BYTES}")
        last = self.place == self.parts - 1
        if len(self.data) != (self.size - self.place * PART_BYTES if last else PART_BYTES):
            raise ValueError(f"data: {len(self.data)} bytes are not what place: {self.place} of size: {self.size} has")


@dataclass(frozen=True, slots=True)
class Want:
    """A payload's parts that are missing, by their places; none named means all of them."""

    epoch: int
    number: int
    places: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check("epoch", self.epoch, 1)
        _check("number", self.number)
        if len(self.places) > MAX_WANTED or any(not 0 <= place < MAX_PARTS for place in self.places):
            raise ValueError(f"places: {len(self.places)} are more than {MAX_WANTED}, or not places of parts")


@dataclass(frozen=True, slots=True)
class Standing:
    """What a device has completed, its estimate ||s - h|| there, and whom it waits for.

    Said after every exchange, when it has waited for long, and with every greeting: then also by a device that has no
    model of this run, of epoch 0, so that the next epoch takes it in as a newcomer.
    """

    epoch: int
    number: int
    estimate: float
    waits_for: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check("epoch", self.epoch)
        _check("number", self.number)
        # Infinity would be the largest distance for good, to which consensus control compares all others.
        if not 0.0 <= self.estimate < float("inf"):
            raise ValueError(f"estimate: {self.estimate} must be at least 0 and finite")
        if len(self.waits_for) > MAX_NEIGHBOURS:
            raise ValueError(f"waits_for: {len(self.waits_for)} are more than {MAX_NEIGHBOURS}")


def parts(epoch: int, number: int, payload: bytes, places: tuple[int, ...] = ()) -> Iterator[Part]:
    """The parts of a payload, all or those at these places."""
    count, digest = -(-len(payload) // PART_BYTES), hashlib.sha256(payload).digest()
    for place in places or range(count):
        if place < count:
            data = payload[place * PART_BYTES :][:PART_BYTES]
            yield Part(epoch, number, place, count, len(payload), digest, data)


@dataclass(slots=True)
class Collected:
    """The parts of one payload as they come, in any order and as often as they like."""

    size: int
    digest: bytes
    count: int
    held: dict[int, bytes]

    @classmethod
    def begun(cls, part: Part) -> "Collected":
        return cls(part.size, part.digest, part.parts, {})

    def add(self, part: Part) -> bytes | None:
        """The payload once it is whole and what its digest says; a part of another payload counts for nothing."""
        if (part.size, part.digest) != (self.size, self.digest):
            return None
        self.held.setdefault(part.place, part.data)
        if len(self.held) < self.count:
            return None
        payload = b"".join(self.held[place] for place in range(self.count))
        if hashlib.sha256(payload).digest() == self.digest:
            return payload
        self.held.clear()
        return None

    @property
    def missing(self) -> tuple[int, ...]:
        """As many places as one may ask for at once."""
        return tuple(place for place in range(self.count) if place not in self.held)[:MAX_WANTED]


def _check(name: str, value: int, least: int = 0, most: int = MAX_NUMBER) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name}: {value} is outside {least}..{most}")
