"""A release: the word of the fleet's release key that devices may run a bundle, as which version, and for how long."""

from collections.abc import Iterable
from dataclasses import dataclass

from protocol.errors import Rejection
from protocol.signing import Signer
from protocol.statements import check, read_statement, state

# Beside a bundle's manifest.
RELEASE_FILE = "release.cbor"
DAY_S = 86400
MAX_VERSION = 1 << 48


@dataclass(frozen=True, slots=True)
class Release:
    """Of one bundle for one fleet. manifest: the SHA-256 of its manifest (32 bytes), which covers all the rest.

    version: counted up by whoever signs; devices go back to a lower one only where they still have it. made, expires:
    Unix seconds.
    """

    fleet: str
    manifest: bytes
    version: int
    made: int
    expires: int

    def __post_init__(self) -> None:
        if len(self.manifest) != 32:
            raise ValueError(f"manifest: {len(self.manifest)} bytes where SHA-256 has 32")
        if not 1 <= self.version <= MAX_VERSION:
            raise ValueError(f"version: {self.version} is outside 1..{MAX_VERSION}")
        if not 0 <= self.made < self.expires < 1 << 48:
            raise ValueError(f"expires: {self.expires} must be after it was made, {self.made}")


def sign_release(release: Release, signer: Signer) -> bytes:
    """The bytes of release.cbor: a seal (72 bytes), then the record in CBOR."""
    return state("release", release, signer)


def check_release(data: bytes, keys: Iterable[bytes], fleet: str, manifest: bytes, now_s: float) -> Release | Rejection:
    """A release that holds now for this manifest. keys: the release keys in force; nothing is decoded before one of
    them is found to have signed it."""
    wrong = check("release", data, keys)
    if wrong is not None:
        return wrong
    release = read_statement(Release, data)
    if isinstance(release, Rejection):
        return release
    if release.fleet != fleet:
        return Rejection("wrong-fleet", f"this release is for fleet {release.fleet!r}, and this is {fleet!r}")
    if release.manifest != manifest:
        named = f"bundle {release.manifest.hex()[:12]}, not {manifest.hex()[:12]}"
        return Rejection("release", f"this release is of {named}; every bundle is signed by itself")
    if now_s >= release.expires:
        days = (now_s - release.expires) / DAY_S
        return Rejection(
            "expired",
            f"the release of bundle {manifest.hex()[:12]}, version {release.version}, expired {days:.1f} days ago; "
            "sign it anew: fleet-export sign; if it has not, set this machine's clock",
        )
    return release
