"""The fleet's keys at the coordinator: rings that follow each other, releases that hold or do not, and their folder."""

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.authority import Authority
from coordinator.fleet_keys import FleetKeys, new_online, new_release, open_keys
from coordinator.seals import Seals
from coordinator.trust import Trust
from protocol.errors import ConfigurationError, Rejection
from protocol.keyring import Ring, follow, next_ring, sign_ring, trusted_ring
from protocol.release import DAY_S, RELEASE_FILE, Release, check_release, sign_release
from protocol.signing import load_signer, new_signing_key
from tests.trust.office import FLEET
from tests.trust.statements import DIGEST, KEY, NOW, OTHER, release, ring


def reason(data: bytes, now_s: float = NOW, keys: tuple[bytes, ...] = (KEY.public,)) -> str | None:
    found = check_release(data, keys, FLEET, DIGEST, now_s)
    return found.reason if isinstance(found, Rejection) else None


@pytest.fixture
def keys(tmp_path: Path) -> FleetKeys:
    Authority(tmp_path / "trust", NOW)
    return open_keys(tmp_path / "trust", FLEET, NOW)


# Releases


def test_a_release_holds_for_its_bundle_and_fleet_until_it_expires() -> None:
    data = sign_release(release(), KEY)
    assert check_release(data, (OTHER.public, KEY.public), FLEET, DIGEST, NOW) == release()
    assert reason(data, NOW + DAY_S) == "expired"
    assert reason(data, keys=(OTHER.public,)) == "unknown-key"
    assert reason(sign_release(release(fleet="away"), KEY)) == "wrong-fleet"
    assert reason(sign_release(release(manifest=bytes(32)), KEY)) == "release"
    assert reason(KEY.seal("keyring", data[72:]) + data[72:]) == "signature", "signed, but as something else"


@given(st.integers(0, 300), st.integers(1, 255))
def test_a_release_with_one_other_byte_is_none(at: int, flip: int) -> None:
    data = bytearray(sign_release(release(), KEY))
    data[at % len(data)] ^= flip
    assert reason(bytes(data)) in ("signature", "unknown-key")


@given(st.binary(max_size=200))
def test_any_bytes_that_the_release_key_signed_are_a_release_or_a_rejection(body: bytes) -> None:
    assert isinstance(check_release(KEY.seal("release", body) + body, (KEY.public,), FLEET, DIGEST, NOW), Rejection)


# Rings


def test_the_next_ring_is_signed_by_the_one_before_and_has_the_next_number() -> None:
    held = ring()
    assert next_ring(held, sign_ring(ring(2, OTHER), KEY)) == ring(2, OTHER)
    for data, why in (
        (sign_ring(ring(2, OTHER), OTHER), "unknown-key"),
        (sign_ring(ring(3), KEY), "keyring"),
        (sign_ring(ring(1), KEY), "keyring"),
        (sign_ring(replace(ring(2), fleet="away"), KEY), "wrong-fleet"),
        (sign_ring(ring(2), KEY)[:-1], "signature"),
    ):
        refused = next_ring(held, data)
        assert isinstance(refused, Rejection)
        assert refused.reason == why


def test_a_chain_is_followed_from_where_one_is_and_never_back() -> None:
    third = load_signer(new_signing_key())
    chain = (sign_ring(ring(1), KEY), sign_ring(ring(2, OTHER), KEY), sign_ring(ring(3, third), OTHER))
    for version, key in ((1, KEY), (2, OTHER)):
        assert follow(ring(version, key), 1, chain) == (ring(3, third), chain[2])
    assert follow(ring(3, third), 1, chain) is None
    broken = follow(ring(1), 2, (chain[1], sign_ring(ring(3), KEY)))
    assert broken == (ring(2, OTHER), chain[1]), "as far as it is right"
    assert isinstance(follow(ring(1), 3, chain[2:]), Rejection)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_ring_or_a_rejection(data: bytes) -> None:
    assert isinstance(trusted_ring(data, FLEET), Ring | Rejection)


# The coordinator's folder


def test_keys_are_made_once_and_are_private(keys: FleetKeys, tmp_path: Path) -> None:
    again = open_keys(tmp_path / "trust", FLEET, NOW)
    assert (again.ring, again.rings) == (keys.ring, keys.rings)
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys.folder.iterdir()} == {0o600}
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700


def test_an_online_key_in_the_second_half_of_its_life_is_followed_by_another(keys: FleetKeys, tmp_path: Path) -> None:
    later = open_keys(tmp_path / "trust", FLEET, NOW + 366 * DAY_S)
    assert later.ring.version == 2
    assert later.online.key_id != keys.online.key_id
    assert len(list(keys.folder.glob("online-*.key"))) == 1


def test_the_keys_of_another_fleet_are_refused(keys: FleetKeys, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"these keys are of fleet 'home', and this is 'away'"):
        open_keys(tmp_path / "trust", "away", NOW)


def test_a_bundle_keeps_its_version_and_a_new_one_has_the_next(keys: FleetKeys, tmp_path: Path) -> None:
    def version(digest: bytes, now_s: float = NOW) -> tuple[int, int]:
        found = check_release(keys.release_of(tmp_path, digest, now_s), keys.ring.release, FLEET, digest, now_s)
        assert isinstance(found, Release)
        return found.version, found.expires

    first, second = DIGEST, bytes(32)
    assert version(first) == (1, NOW + 90 * DAY_S)
    assert version(second)[0] == 2
    assert version(first, NOW + 44 * DAY_S) == (1, NOW + 90 * DAY_S), "still in its first half"
    assert version(first, NOW + 46 * DAY_S) == (1, NOW + 136 * DAY_S)


def test_what_was_signed_by_hand_counts_and_has_what_is_needed_said_where_it_is_missing(
    keys: FleetKeys, tmp_path: Path
) -> None:
    assert keys.release is not None
    by_hand = sign_release(release(version=7), keys.release)
    (tmp_path / RELEASE_FILE).write_bytes(by_hand)
    offline = new_release(keys, keys.release, KEY.public, NOW)
    assert keys.release_of(tmp_path, DIGEST, NOW) != b""
    with pytest.raises(ConfigurationError, match=r"fleet-export sign .* --fleet home --version 8"):
        offline.release_of(tmp_path, DIGEST, NOW)
    (tmp_path / RELEASE_FILE).write_bytes(sign_release(release(version=8), KEY))
    assert offline.release_of(tmp_path, DIGEST, NOW) == sign_release(release(version=8), KEY)
    with pytest.raises(ConfigurationError, match="has no release that holds"):
        offline.release_of(tmp_path, DIGEST, NOW + DAY_S)


def test_a_ring_that_another_key_would_sign_is_not_written(keys: FleetKeys) -> None:
    with pytest.raises(ConfigurationError, match="is not the release key in force"):
        new_online(keys, OTHER, NOW)
    assert len(list(keys.folder.glob("ring-*"))) == 1


def test_a_release_and_a_ring_that_a_clock_made_that_was_ahead_are_followed_by_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ahead = NOW + 200 * DAY_S
    Authority(tmp_path / "trust", NOW)
    open_keys(tmp_path / "trust", FLEET, ahead).release_of(tmp_path, DIGEST, ahead)
    assert not caplog.records
    keys = open_keys(tmp_path / "trust", FLEET, NOW)
    assert "ring 1 was made 200 days from now" in caplog.text
    assert keys.release is not None
    found = check_release(keys.release_of(tmp_path, DIGEST, NOW), keys.ring.release, FLEET, DIGEST, NOW)
    assert isinstance(found, Release)
    assert (found.version, found.made) == (1, NOW)
    assert new_online(keys, keys.release, NOW).ring.made == NOW


def test_the_end_of_an_online_key_is_said_in_its_last_month(
    keys: FleetKeys, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trust = Trust(tmp_path / "trust")
    end = keys.ring.online[0].expires
    for now_s, said in ((end - 31 * DAY_S, 0), (end - 29 * DAY_S, 1)):
        seals = Seals(replace(keys, release=None), trust, lambda at=now_s: at, required=True)  # type: ignore[misc]
        for second in (10.0, 20.0):
            seals.look(second)
        seals.close()
        assert len(caplog.records) == said
    assert "ends in 29.0 days" in caplog.text
    assert "keys rotate --online --key FILE" in caplog.text
