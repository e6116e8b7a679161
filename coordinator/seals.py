"""Seals on all that the coordinator says, the check of those of devices, and what of the fleet's keys they may lack."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from coordinator.device_keys import DeviceKeys
from coordinator.fleet_keys import FleetKeys, ending, load_keys
from coordinator.freshness import Freshness
from coordinator.trust import Trust
from protocol.bundle import Bundle
from protocol.envelope import Envelope
from protocol.errors import ConfigurationError, Rejection
from protocol.keyring import Keyring
from protocol.messages import Body, Task
from protocol.sealed import holds, seal_in, sealed
from protocol.signing import ed25519_verifier
from protocol.transport import Incoming

log = logging.getLogger("coordinator")

# Keys that a command has changed are in force after so long, without a restart.
LOOK_EVERY_S = 1.0
# A release that nears its end is followed by another within the hour.
SIGN_EVERY_S = 3600.0
WARN_EVERY_S = 86400.0


class Seals:
    """Of one start of the coordinator. required: whether devices must seal what they say; those of older agents do not.

    wall: Unix seconds. Calls come from the daemon's thread, but for `enrolment`.
    """

    def __init__(self, keys: FleetKeys, trust: Trust, wall: Callable[[], float], *, required: bool) -> None:
        self._keys, self._wall, self._required = keys, wall, required
        self._devices = DeviceKeys(trust, wall)
        self._freshness = Freshness()
        self._bundle: tuple[Path, bytes] | None = None
        self._release = b""
        self._look_at = self._sign_at = self._warn_at = 0.0

    def close(self) -> None:
        self._devices.close()

    # What the coordinator says

    def seal(self, topic: str, payload: bytes) -> bytes:
        return sealed(topic, payload, self._keys.online)

    def take_bundle(self, bundle: Bundle) -> None:
        """Sees to it that the bundle in use has a release. Raises ConfigurationError where it cannot have one."""
        self._bundle = bundle.root, bundle.digest
        self._release = self._keys.release_of(*self._bundle, self._wall())

    def signed(self, body: Body) -> Body:
        """What is said, with the release of the bundle where it names one."""
        return replace(body, release=self._release) if isinstance(body, Task) else body

    def enrolment(self) -> tuple[int, tuple[bytes, ...]]:
        """What a device is given of the keys where it is known to whom it speaks. From any thread."""
        keys = self._keys
        return keys.after(max(0, keys.ring.version - 1))

    def lacking(self, ring: int | None) -> Keyring | None:
        """What a device that goes by a ring lacks of the newer ones; None of one that has them, or knows no keys."""
        if ring is None or not 1 <= ring < self._keys.ring.version:
            return None
        return Keyring(*self._keys.after(ring))

    def behind(self, ring: int | None) -> str | None:
        """What is amiss where a device goes by a newer ring than there is here: it can believe nothing that is said."""
        own = self._keys.ring.version
        if ring is None or ring <= own:
            return None
        return (
            f"goes by ring {ring}, and this coordinator has {own}: the trust folder was put back from an older backup; "
            f"fleet-coordinator keys rotate --online, until the ring is above {ring}"
        )

    def look(self, now: float) -> Keyring | None:
        """Takes up what a command has changed, and says what all devices should be told of it. Signs the bundle anew
        before its release ends. now: of a monotonic clock."""
        if now < self._look_at:
            return None
        self._look_at = now + LOOK_EVERY_S
        before = self._keys
        if now >= self._warn_at:
            self._warn_at = now + WARN_EVERY_S
            soon = ending(before, self._wall())
            if soon is not None:
                log.warning("%s", soon)
        if (before.folder / f"ring-{before.ring.version + 1:04d}.cbor").exists():
            self._keys = load_keys(before.folder, before.ring.fleet)
            log.info("keys of the fleet: ring=%d", self._keys.ring.version)
        if self._bundle is not None and (self._keys is not before or now >= self._sign_at):
            self._sign_at = now + SIGN_EVERY_S
            try:
                self._release = self._keys.release_of(*self._bundle, self._wall())
            except ConfigurationError as error:
                # Rounds that are under way end as they can; devices refuse new tasks as expired.
                log.error("%s", error)
        return None if self._keys is before else Keyring(*self._keys.after(before.ring.version - 1))

    # What it hears

    def check(self, device: str, message: Incoming, *, will: bool) -> Rejection | None:
        """Why a message is not the device's. Nothing of it was decoded yet. will: of what the broker may say for it
        long after, when the key it was sealed with has been followed by another."""
        seal = seal_in(message.payload)
        if seal is None:
            if not self._required:
                return None
            return Rejection(
                "unsigned",
                "it has no seal, as of an agent of an older version; upgrade it, or set trust.require_seals = false "
                "until then",
            )
        verifier = self._devices.verifier(device, seal, ended=will)
        if verifier is None:
            return Rejection("unknown-key", "it is sealed with a key that is not of this device's certificates")
        return None if holds(message.topic, message.payload, verifier) else Rejection("signature", "its seal is wrong")

    def fresh(self, device: str, said: Envelope) -> Rejection | None:
        """Why a message of a device was here before, or is of an earlier start of it."""
        return self._freshness.check(device, said)

    def key_of(self, device: str) -> bytes | None:
        """By which its neighbours believe a device: SubjectPublicKeyInfo, DER."""
        return self._devices.public(device)

    def is_ours(self, message: Incoming) -> bool:
        """Whether a message that claims to be a coordinator's is of one of this fleet."""
        keys = (ed25519_verifier(online.key) for online in self._keys.ring.online)
        return seal_in(message.payload) is not None and any(holds(message.topic, message.payload, key) for key in keys)
