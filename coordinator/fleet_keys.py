"""The fleet's signing keys, beside its CA: the release key (which may be kept elsewhere), the online key, the rings.

trust/keys/ring-0001.cbor       each ring of public keys there was (protocol/keyring.py)
trust/keys/online-<id>.key      the key that messages are sealed with
trust/keys/release-<id>.key     the key that bundles and rings are signed with, unless it was moved away
trust/keys/release-000001-<digest>.cbor   what was signed, or used: a bundle keeps its version
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from coordinator.authority import locked
from protocol.errors import ConfigurationError, Rejection
from protocol.keyring import MAX_RINGS_SAID, OnlineKey, Ring, next_ring, sign_ring, trusted_ring
from protocol.private_files import check_private, make_private_folder, write_private
from protocol.release import DAY_S, RELEASE_FILE, Release, check_release, sign_release
from protocol.signing import Signer, key_id, load_signer, new_signing_key
from protocol.statements import read_statement

log = logging.getLogger("coordinator")

# As long as the coordinator's certificate; renewed in the second half where the release key is at hand.
ONLINE_DAYS = 730
# Signed anew in the second half where the release key is at hand: a device that is given an old bundle has it refused.
RELEASE_DAYS = 90
# Of the online key, for which the log says that its end is near.
LAST_DAYS = 30
# What was made later than this from now was made by a clock that was ahead.
AHEAD_S = DAY_S


@dataclass(frozen=True, slots=True)
class FleetKeys:
    """What there is to sign with now. rings: the signed ones, oldest first. release: None where it is elsewhere."""

    folder: Path
    ring: Ring
    rings: tuple[bytes, ...]
    online: Signer
    release: Signer | None

    def after(self, version: int) -> tuple[int, tuple[bytes, ...]]:
        """The next rings after a version, as many as are said at once, and the version of the first of them."""
        begin = min(max(version, 0), len(self.rings))
        return begin + 1, self.rings[begin : begin + MAX_RINGS_SAID]

    def release_of(self, bundle: Path, digest: bytes, now_s: float) -> bytes:
        """The release of a bundle: the one beside its manifest, one that was made before, or a new one. Raises
        ConfigurationError where there is none and the release key is kept elsewhere."""
        with locked(self.folder.parent):
            known = _releases(self.folder)
            found = _best(self, [*_read(bundle / RELEASE_FILE), *(data for _, data in known)], digest, now_s)
            if found is not None and not (self.release is not None and _is_old(found[0], now_s)):
                _keep(self.folder, *found)
                return found[1]
            if self.release is None:
                raise ConfigurationError(
                    f"bundle: {bundle} has no release that holds, and the release key is not in {self.folder}; on the "
                    f"machine that has it: fleet-export sign {bundle} --key FILE --fleet {self.ring.fleet} --version "
                    f"{1 + max((r.version for r, _ in known), default=0)}"
                )
            version = found[0].version if found else _version_of(digest, [r for r, _ in known])
            made = Release(self.ring.fleet, digest, version, int(now_s), int(now_s) + RELEASE_DAYS * DAY_S)
            data = sign_release(made, self.release)
            _keep(self.folder, made, data)
            return data


def open_keys(trust_folder: Path, fleet: str, now_s: float) -> FleetKeys:
    """The keys of a fleet, made if there are none; an online key that ends in time is followed by another. Raises
    ConfigurationError."""
    folder = trust_folder / "keys"
    make_private_folder(folder)
    with locked(trust_folder):
        if not any(folder.glob("ring-*.cbor")):
            _make(folder, fleet, now_s)
        keys = load_keys(folder, fleet)
        (online, *_) = [k for k in keys.ring.online if key_id(k.key) == keys.online.key_id]
        if keys.release is not None and online.expires - now_s < ONLINE_DAYS * DAY_S / 2:
            keys = new_online(keys, keys.release, now_s)
    if keys.ring.made > now_s + AHEAD_S:
        log.error(
            "%s: ring %d was made %.0f days from now: this machine's clock is behind, or was ahead. Set it; if it is "
            "right, make the next ring (fleet-coordinator keys rotate --online), and enrol the devices again that "
            "refuse bundles as expired",
            *(folder, keys.ring.version, (keys.ring.made - now_s) / DAY_S),
        )
    return keys


def ending(keys: FleetKeys, now_s: float) -> str | None:
    """What to do about an online key whose end is near, as it comes where the release key is kept elsewhere."""
    (ends,) = (online.expires for online in keys.ring.online if key_id(online.key) == keys.online.key_id)
    days = (ends - now_s) / DAY_S
    if days > LAST_DAYS:
        return None
    how = "fleet-coordinator keys rotate --online" + ("" if keys.release else " --key FILE, with the release key")
    return f"the online key ends in {days:.1f} days, and devices then believe nothing of this coordinator: {how}"


def load_keys(folder: Path, fleet: str) -> FleetKeys:
    """The keys in a folder. Raises ConfigurationError for one that is not whole, or of another fleet."""
    ring, rings = _load_rings(folder, fleet)
    online = _load(folder, "online", tuple(k.key for k in ring.online))
    if online is None:
        raise ConfigurationError(
            f"{folder}: the online key of ring {ring.version} is gone; restore the folder from a backup, or make "
            "another: fleet-coordinator keys rotate --online"
        )
    return FleetKeys(folder, ring, rings, online, _load(folder, "release", ring.release))


def new_online(keys: FleetKeys, release: Signer, now_s: float, days: float = ONLINE_DAYS) -> FleetKeys:
    """The next ring, with another online key in place of the one before. The caller has the folder locked."""
    private = new_signing_key()
    online = load_signer(private)
    ring = replace(_next(keys, now_s), online=(OnlineKey(online.public, int(now_s + days * DAY_S)),))
    write_private(keys.folder / f"online-{online.key_id.hex()}.key", private)
    data = _add(keys, ring, release)
    _remove(keys.folder, "online", online.key_id)
    return replace(keys, ring=ring, rings=(*keys.rings, data), online=online)


def new_release(keys: FleetKeys, release: Signer, public: bytes | None, now_s: float) -> FleetKeys:
    """The next ring, with another release key in place of the one before, which signs it for the last time. public:
    of the one that is kept elsewhere, None to make one here. The caller has the folder locked."""
    found: Signer | None = None
    if public is None:
        private = new_signing_key()
        found = load_signer(private)
        public = found.public
        write_private(keys.folder / f"release-{found.key_id.hex()}.key", private)
    ring = replace(_next(keys, now_s), release=(public,))
    data = _add(keys, ring, release)
    _remove(keys.folder, "release", key_id(public))
    return replace(keys, ring=ring, rings=(*keys.rings, data), release=found)


def _make(folder: Path, fleet: str, now_s: float) -> None:
    release, online = new_signing_key(), new_signing_key()
    signer, sealer = load_signer(release), load_signer(online)
    ring = Ring(fleet, 1, int(now_s), (signer.public,), (OnlineKey(sealer.public, int(now_s) + ONLINE_DAYS * DAY_S),))
    write_private(folder / f"release-{signer.key_id.hex()}.key", release)
    write_private(folder / f"online-{sealer.key_id.hex()}.key", online)
    write_private(folder / "ring-0001.cbor", sign_ring(ring, signer))


def _next(keys: FleetKeys, now_s: float) -> Ring:
    # One that a clock made that was ahead has no say in the time of the next.
    before = 0 if keys.ring.made > now_s + AHEAD_S else keys.ring.made
    return replace(keys.ring, version=keys.ring.version + 1, made=max(int(now_s), before))


def _add(keys: FleetKeys, ring: Ring, release: Signer) -> bytes:
    data = sign_ring(ring, release)
    if isinstance(next_ring(keys.ring, data), Rejection):
        raise ConfigurationError(
            f"--key: {release.key_id.hex()} is not the release key in force, which is "
            f"{', '.join(key_id(key).hex() for key in keys.ring.release)}"
        )
    write_private(keys.folder / f"ring-{ring.version:04d}.cbor", data)
    return data


def _load_rings(folder: Path, fleet: str) -> tuple[Ring, tuple[bytes, ...]]:
    rings = tuple(path.read_bytes() for path in sorted(folder.glob("ring-*.cbor")))
    ring = trusted_ring(rings[0], fleet)
    for data in rings[1:]:
        if isinstance(ring, Rejection):
            break
        ring = next_ring(ring, data)
    if isinstance(ring, Rejection):
        remedy = "restore the folder from a backup" if ring.reason != "wrong-fleet" else "name another trust.folder"
        raise ConfigurationError(f"{folder}: {ring.detail}; {remedy}")
    return ring, rings


def _load(folder: Path, kind: str, public: tuple[bytes, ...]) -> Signer | None:
    """The private key of the first of these public ones that is here."""
    for key in public:
        path = folder / f"{kind}-{key_id(key).hex()}.key"
        if path.exists():
            check_private(path)
            try:
                signer = load_signer(path.read_bytes())
            except ValueError as error:
                raise ConfigurationError(f"{path}: {error}; restore it from a backup") from None
            if signer.public == key:
                return signer
    return None


def _remove(folder: Path, kind: str, but: bytes) -> None:
    """Private keys that are no longer in force are good for nothing but theft."""
    for path in folder.glob(f"{kind}-*.key"):
        if path.name != f"{kind}-{but.hex()}.key":
            path.unlink()


def _releases(folder: Path) -> list[tuple[Release, bytes]]:
    """All that were signed or used here."""
    found = []
    for path in sorted(folder.glob("release-*.cbor")):
        data = path.read_bytes()
        release = read_statement(Release, data)
        if isinstance(release, Release):
            found.append((release, data))
    return found


def _best(keys: FleetKeys, candidates: list[bytes], digest: bytes, now_s: float) -> tuple[Release, bytes] | None:
    """Of those that hold, the one of the highest version, and of those the newest. None that was made by a clock that
    was ahead: devices would go by its time, and have everything else expired."""
    read = [(check_release(data, keys.ring.release, keys.ring.fleet, digest, now_s), data) for data in candidates]
    holds = [(release, data) for release, data in read if isinstance(release, Release)]
    holds = [found for found in holds if found[0].made <= now_s + AHEAD_S]
    return max(holds, key=lambda found: (found[0].version, found[0].made), default=None)


def _is_old(release: Release, now_s: float) -> bool:
    return release.expires - now_s < (release.expires - release.made) / 2


def _version_of(digest: bytes, known: list[Release]) -> int:
    """A bundle keeps its version, also under another key; a new one has the next."""
    own = [release.version for release in known if release.manifest == digest]
    return max(own) if own else 1 + max((release.version for release in known), default=0)


def _keep(folder: Path, release: Release, data: bytes) -> None:
    path = folder / f"release-{release.version:06d}-{release.manifest.hex()[:16]}.cbor"
    if not path.exists() or path.read_bytes() != data:
        write_private(path, data)


def _read(path: Path) -> tuple[bytes, ...]:
    try:
        return (path.read_bytes(),)
    except OSError:
        return ()
