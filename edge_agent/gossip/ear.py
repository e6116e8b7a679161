"""Which neighbours are believed: by the keys that memberships name, each message once, and none of an earlier start.

What is replayed could do little harm, since a payload counts once and says its place itself; it would only make a
device say what it said before. Keys of the epoch before stay known: who was a neighbour there may still miss its last
payload, and cannot go on to this epoch without it.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from protocol.envelope import Envelope
from protocol.errors import Rejection
from protocol.freshness import REPLAYED, Window
from protocol.gossip import Membership
from protocol.sealed import holds, seal_in
from protocol.signing import ID_BYTES, Verifier, verifier_of_spki
from protocol.transport import Incoming

# A device that renews its certificate speaks with the next key a little before all have heard of it.
MOST_KEYS = 2
# Why a message is not heeded, though nothing is wrong: a neighbour was told of the epoch first.
EARLY = "early"


@dataclass(frozen=True, slots=True)
class Key:
    """By which a device was to be believed in an epoch: SubjectPublicKeyInfo, DER."""

    device: str
    epoch: int
    key: bytes


@dataclass
class Ear:
    """is_keyed: whether this fleet has identities, so that what has no seal of a known neighbour is not decoded."""

    is_keyed: Callable[[], bool] = lambda: False
    keys: tuple[Key, ...] = ()
    _epoch: int = 0
    _verifiers: dict[bytes, Verifier] = field(default_factory=dict)
    _starts: dict[str, tuple[int, Window]] = field(default_factory=dict)

    def learn(self, said: Membership) -> bool:
        """Takes the keys of an epoch's neighbours in, and lets go of those of the one before the last; whether there
        were any new."""
        fresh = [Key(n.device, said.epoch, n.key) for n in said.neighbours if n.key is not None]
        new = [one for one in fresh if all((k.device, k.key) != (one.device, one.key) for k in self.keys)]
        if said.epoch > self._epoch:
            self._epoch = said.epoch
            # A device whose state is new counts its starts anew, and is then told of in a new epoch.
            self._starts.clear()
        renewed = {(one.device, one.key) for one in fresh}
        old = [k for k in self.keys if k.epoch >= said.epoch - 1 and (k.device, k.key) not in renewed]
        self.keys = tuple(_newest([*old, *fresh]))
        return bool(new)

    def check(self, sender: str, message: Incoming) -> Rejection | None:
        """Why a message is not this neighbour's. Nothing of it was decoded yet."""
        if not self.is_keyed():
            return None
        seal = seal_in(message.payload)
        if seal is None:
            return Rejection("unsigned", f"{sender}: it has no seal, and this fleet has identities")
        if not self.keys:
            return Rejection(EARLY, f"{sender}: it speaks before this device was told who its neighbours are")
        for known in self.keys:
            verifier = self._verifier(known.key) if known.device == sender else None
            if verifier is not None and verifier.key_id == seal[:ID_BYTES]:
                right = holds(message.topic, message.payload, verifier)
                return None if right else Rejection("signature", f"{sender}: its seal is wrong")
        return Rejection("unknown-key", f"{sender}: it is sealed with none of the keys that memberships named")

    def fresh(self, sender: str, said: Envelope) -> Rejection | None:
        """Takes a message in whose sender is known; why it is not to be heeded."""
        if not self.is_keyed():
            return None
        boot, window = self._starts.get(sender, (-1, Window()))
        if said.boot < boot:
            return REPLAYED
        if said.boot > boot:
            window = Window()
            self._starts[sender] = said.boot, window
        return None if window.take(said.sequence) else REPLAYED

    def _verifier(self, der: bytes) -> Verifier | None:
        if der not in self._verifiers:
            try:
                self._verifiers[der] = verifier_of_spki(der)
            except ValueError:
                return None
        return self._verifiers[der]


def _newest(keys: Iterable[Key]) -> list[Key]:
    """So many of each device, the last ones."""
    by_device: dict[str, list[Key]] = {}
    for key in keys:
        by_device.setdefault(key.device, []).append(key)
    return [key for of in by_device.values() for key in of[-MOST_KEYS:]]
