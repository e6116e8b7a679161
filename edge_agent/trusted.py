"""Whom this device believes, and how it is believed itself: seals of its fleet's keys, and its own on what it says."""

import logging
from collections.abc import Callable
from pathlib import Path

from edge_agent.freshness import Freshness
from edge_agent.identity import credentials
from edge_agent.keyring import adopt, keep_newest, load_newest, load_ring
from edge_agent.store import AgentStore
from protocol.envelope import Envelope
from protocol.errors import NotEnrolledError, Rejection
from protocol.keyring import Keyring, Ring
from protocol.messages import Task
from protocol.release import DAY_S, Release, check_release
from protocol.sealed import holds, seal_in, sealed
from protocol.signing import ID_BYTES, Verifier, ed25519_verifier, load_signer
from protocol.transport import Incoming

log = logging.getLogger("edge-agent")

# Why a bundle is not to be taken up, by its digest and the version of its release, None where nothing is signed.
Refusal = Callable[[bytes, int | None], Rejection | None]
# 2020: an earlier clock was never set.
_PLAUSIBLE_S = 1_577_836_800
_CLOCK = "if it has not, set this device's clock"


class Trusted:
    """Of one device with an identity. Without a ring, as an older coordinator leaves a device, it believes whoever the
    broker lets speak; its own messages are sealed all the same. wall: Unix seconds.

    Calls come from the agent's thread.
    """

    def __init__(self, state: Path, fleet: str, store: AgentStore, wall: Callable[[], float]) -> None:
        self._state, self._fleet, self._store, self._wall = state, fleet, store, wall
        self._freshness = Freshness(store.instance)
        self._ring: Ring | None = None
        self._verifiers: tuple[tuple[Verifier, int], ...] = ()
        self._key = credentials(state).key
        self._reload()
        if self._ring is None:
            log.warning(
                "this device has no keys of its fleet, as an older coordinator enrolled it, and believes whoever the "
                "broker lets speak; the next certificate brings them, or enrol it again: edge-agent enroll"
            )

    def _reload(self) -> None:
        """Takes key and ring from the disk. Renewal, and whoever enrols again, put the ring there before the key."""
        self._written = self._key.stat().st_mtime_ns
        try:
            self._signer = load_signer(self._key.read_bytes())
        except ValueError as error:
            raise NotEnrolledError(
                f"{self._key}: {error}; enrol this device again, with a token that is for it"
            ) from None
        self._newest = load_newest(self._state)
        self._take(load_ring(self._state, self._fleet))

    @property
    def ring(self) -> int | None:
        """The version of the keys that are believed."""
        return None if self._ring is None else self._ring.version

    def seal(self, topic: str, payload: bytes) -> bytes:
        """With the key that the certificate is for, as it is on the disk now."""
        if self._key.stat().st_mtime_ns != self._written:
            self._reload()
        return sealed(topic, payload, self._signer)

    def greeted(self, sequence: int) -> None:
        self._freshness.greeted(sequence)

    def check(self, message: Incoming) -> Rejection | None:
        """Why a message is not the coordinator's. Nothing of it was decoded yet."""
        if self._ring is None:
            return None
        seal = seal_in(message.payload)
        if seal is None:
            return Rejection("unsigned", "it has no seal, and this device knows its fleet's keys")
        now_s = self.now_s()
        for verifier, expires in self._verifiers:
            if verifier.key_id == seal[:ID_BYTES]:
                if now_s >= expires:
                    return Rejection("key-expired", f"the coordinator's key {_short(seal)} has expired; {_CLOCK}")
                right = holds(message.topic, message.payload, verifier)
                return None if right else Rejection("signature", "its seal is wrong")
        return Rejection("unknown-key", f"it is sealed with {_short(seal)}, none of the keys in force")

    def fresh(self, said: Envelope) -> Rejection | None:
        """Why a message that was sealed by the coordinator is of another day."""
        return None if self._ring is None else self._freshness.check(said)

    def release(self, task: Task) -> Release | Rejection | None:
        """The release of a task's bundle, or why there is none that holds; None on a device that knows no keys."""
        if self._ring is None:
            return None
        if task.release is None:
            return Rejection("unsigned", "this task's bundle has no release, and this device knows its fleet's keys")
        found = check_release(task.release, self._ring.release, self._fleet, task.manifest.digest, self.now_s())
        if isinstance(found, Release):
            self._saw(found.made)
        return found

    def adopt(self, said: Keyring) -> bool | Rejection:
        """Takes newer keys up, if the ones that are known vouch for them; whether there were any."""
        if self._ring is None:
            # Nobody vouches for a first ring here; renewal brings it, over a connection to the fleet's CA.
            return False
        found = adopt(self._state, self._ring, said)
        if isinstance(found, Rejection) or found is None:
            return found or False
        self._take(found)
        log.info("keys of the fleet: ring=%d", found.version)
        return True

    def now_s(self) -> float:
        """The wall clock, or a time that is surely past where that is behind it, as one that starts in 1970 is."""
        return max(self._wall(), float(self._newest))

    def _take(self, ring: Ring | None) -> None:
        # On the disk an older one may be, of a trust folder that was made anew: the disk is this device's own.
        if ring is None:
            return
        self._ring = ring
        self._verifiers = tuple((ed25519_verifier(online.key), online.expires) for online in ring.online)
        self._saw(ring.made)

    def _saw(self, made: int) -> None:
        """Takes a signed time for one that is past. Not one ahead of a clock that may be right: some clock of the
        fleet's was ahead, and this device would have everything expired for good."""
        wall = self._wall()
        plausible = wall >= max(_PLAUSIBLE_S, self._newest)
        if made > self._newest and not (plausible and made > wall + DAY_S):
            self._newest = made
            keep_newest(self._state, made)


def unbelieved(trusted: Trusted | None, refusal: Refusal, task: Task) -> Rejection | None:
    """Why a task's bundle is not to be run here, before anything of it is looked at."""
    release = None if trusted is None else trusted.release(task)
    if isinstance(release, Rejection):
        return release
    return refusal(task.manifest.digest, None if release is None else release.version)


def version_of(trusted: Trusted | None, task: Task) -> int | None:
    """The version of a task's release; None where nothing is signed."""
    release = None if trusted is None else trusted.release(task)
    return release.version if isinstance(release, Release) else None


def _short(seal: bytes) -> str:
    return seal[:ID_BYTES].hex()
