"""A ring and a release of one fleet, for tests to sign, by one of two keys."""

from dataclasses import replace

from protocol.keyring import OnlineKey, Ring
from protocol.release import DAY_S, Release
from protocol.signing import Signer, load_signer, new_signing_key
from tests.trust.office import FLEET

NOW = 1_700_000_000
DIGEST = bytes(range(32))
KEY = load_signer(new_signing_key())
OTHER = load_signer(new_signing_key())


def ring(version: int = 1, key: Signer = KEY) -> Ring:
    return Ring(FLEET, version, NOW, (key.public,), (OnlineKey(OTHER.public, NOW + DAY_S),))


def release(**other: object) -> Release:
    return replace(Release(FLEET, DIGEST, 3, NOW, NOW + DAY_S), **other)  # type: ignore[arg-type]
