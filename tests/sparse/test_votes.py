"""Masks learnt over frozen weights: the rule by itself, and the bytes of a ballot."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse.codecs import PayloadError, ballot_bytes, decode_ballot, encode_ballot
from sparse.masks import Mask
from sparse.votes import (
    LEVELS,
    chances_of,
    drawn,
    kept_of,
    pack_chances,
    scores_of,
    straight_through,
    unpack_chances,
)

LAYOUT = bytes(range(8))
lengths = st.integers(0, 200)


def mask_of(d: int, seed: int = 0) -> Mask:
    return np.random.default_rng(seed).random(d) < 0.5


@given(lengths, st.integers(0, 9))
def test_a_ballot_is_ceil_d_over_8_bytes_of_mask_and_a_header_and_comes_back(d: int, seed: int) -> None:
    mask = mask_of(d, seed)
    payload = encode_ballot(mask, LAYOUT)
    assert len(payload) - 20 == -(-d // 8)
    assert len(payload) == ballot_bytes(d)
    np.testing.assert_array_equal(decode_ballot(payload, d, LAYOUT), mask)


def test_a_ballot_has_these_bytes() -> None:
    head = b"SFVB" + bytes.fromhex("0a000000") + LAYOUT
    bits = bytes([0b00000101, 0b00000010])
    expected = head + struct.pack("<I", zlib.crc32(head + bits)) + bits
    assert encode_ballot(np.array([1, 0, 1, 0, 0, 0, 0, 0, 0, 1], np.bool_), LAYOUT) == expected


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda p: p[:19], "truncated"),
        (lambda p: p[:-1], "length"),
        (lambda p: p + b"\0", "length"),
        (lambda p: b"SFLV" + p[4:], "magic"),
        (lambda p: p[:4] + b"\x0b" + p[5:], "size"),
        (lambda p: p[:8] + bytes(8) + p[16:], "layout"),
        (lambda p: p[:-1] + bytes([p[-1] ^ 1]), "checksum"),
        (lambda p: p[:16] + struct.pack("<I", zlib.crc32(p[:16] + p[20:-1] + b"\x80")) + p[20:-1] + b"\x80", "values"),
    ],
)
def test_a_ballot_that_is_not_one_is_refused_for_its_reason(change: object, reason: str) -> None:
    altered = change(encode_ballot(mask_of(10), LAYOUT))  # type: ignore[operator]
    with pytest.raises(PayloadError) as refused:
        decode_ballot(altered, 10, LAYOUT)
    assert refused.value.reason == reason


@given(lengths)
def test_chances_travel_in_a_byte_each_on_the_same_side_of_one_half(d: int) -> None:
    chances = np.random.default_rng(d).random(d, np.float32)
    chances[: d // 4] = 0.5
    chances[d // 4 : d // 2 : 2] = np.nextafter(np.float32(0.5), np.float32(0))
    told = unpack_chances(pack_chances(chances))
    assert len(pack_chances(chances)) == d
    assert np.abs(told - chances).max(initial=0) <= 0.5 / LEVELS + 1e-6
    np.testing.assert_array_equal(kept_of(told), kept_of(chances))


def test_no_chance_that_travelled_is_0_or_1_so_that_its_score_is_finite() -> None:
    told = unpack_chances(pack_chances(np.array([0, 1], np.float32)))
    assert (told > 0).all()
    assert (told < 1).all()
    assert np.isfinite(scores_of(told)).all()


def test_scores_are_of_their_chances() -> None:
    chances = unpack_chances(bytes(range(256)))
    np.testing.assert_allclose(chances_of(scores_of(chances)), chances, rtol=1e-5)
    assert chances_of(np.array([-1e30, 1e30], np.float32)).tolist() == [0.0, 1.0]


def test_the_mean_of_drawn_masks_is_their_chance() -> None:
    chances, rng = np.linspace(0.05, 0.95, 19, dtype=np.float32), np.random.default_rng(1)
    mean = np.mean([drawn(chances, rng) for _ in range(4000)], axis=0)
    np.testing.assert_allclose(mean, chances, atol=0.03)


def test_the_gradient_straight_through_is_that_of_the_expected_loss_where_the_loss_is_linear() -> None:
    """Of L = c . (w x m), the expectation over masks is c . (w x sigmoid(s)), whose gradient has no estimate in it."""
    rng = np.random.default_rng(2)
    c, w, s = rng.normal(size=(3, 50))
    step = 1e-6
    numeric = [
        (c[i] * w[i] / (1 + np.exp(-s[i] - step)) - c[i] * w[i] / (1 + np.exp(-s[i] + step))) / (2 * step)
        for i in range(50)
    ]
    chances = chances_of(s.astype(np.float32))
    found = straight_through(c.astype(np.float32), w.astype(np.float32), chances)
    np.testing.assert_allclose(found, numeric, rtol=1e-4, atol=1e-6)
