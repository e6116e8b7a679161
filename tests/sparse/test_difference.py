"""Models as differences: both ends hold the same bits, buffers arrive exactly, and nothing hostile gets through."""

import numpy as np
import pytest

from sparse.codecs import PayloadError, apply_difference, encode, encode_difference, parse_codec
from sparse.codecs.selection import Vector

LAYOUT = b"layout08"
SHAPES = ((40, 10), (40,))
PARAMETERS, BUFFERS, FROZEN = 440, 7, 5
TOTAL = PARAMETERS + BUFFERS + FROZEN
CODECS = (
    "all/float32",
    "topk:0.1/int8",
    "topk:0.05@tensor/ternary",
    "all/int4",
    "randk:0.2/float16",
    "powersgd:2/float16",
)


def model(seed: int) -> Vector:
    """Frozen values are the same in all of them."""
    values = np.random.default_rng(seed).normal(size=TOTAL).astype(np.float32)
    values[PARAMETERS + BUFFERS :] = 3
    return values


def encoded(base: Vector, target: Vector, codec: str, seed: int = 1) -> bytes:
    return encode_difference(base, target, PARAMETERS, BUFFERS, parse_codec(codec), LAYOUT, SHAPES, seed)


def applied(base: Vector, payload: bytes) -> Vector:
    return apply_difference(base, payload, PARAMETERS, BUFFERS, LAYOUT, SHAPES)


@pytest.mark.parametrize("codec", CODECS)
def test_the_result_is_nearer_to_the_target_and_its_buffers_are_the_targets(codec: str) -> None:
    base, target = model(1), model(2)
    kept = base.copy()
    result = applied(base, encoded(base, target, codec))
    assert base.tobytes() == kept.tobytes()
    assert np.square(target - result).sum() < np.square(target - base).sum()
    assert result[PARAMETERS:].tobytes() == target[PARAMETERS:].tobytes()


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_left_out_comes_with_later_differences(codec: str) -> None:
    held, target = model(1), model(2)
    for seed in range(120):
        held = applied(held, encoded(held, target, codec, seed))
    np.testing.assert_allclose(held, target, atol=2e-2)


def test_a_payload_is_a_frame_of_what_is_added_and_a_frame_of_buffers() -> None:
    base, target = model(1), model(2)
    spec = parse_codec("topk:0.05@tensor/ternary")
    parameters = encode(target[:PARAMETERS] - base[:PARAMETERS], spec, LAYOUT, shapes=SHAPES, seed=1)
    buffers = encode(target[PARAMETERS : PARAMETERS + BUFFERS], parse_codec("all/float32"), LAYOUT)
    assert encoded(base, target, str(spec)) == parameters + buffers


@pytest.mark.parametrize("codec", CODECS)
def test_the_same_payload_leads_to_the_same_bits(codec: str) -> None:
    base, target = model(1), model(2)
    first, second = encoded(base, target, codec), encoded(base, target, codec)
    assert first == second
    assert applied(base, first).tobytes() == applied(base, second).tobytes()


def test_a_payload_that_was_cut_or_changed_anywhere_is_refused() -> None:
    base, target = model(1), model(2)
    payload = encoded(base, target, "topk:0.1/int8")
    for at in range(len(payload)):
        flipped = bytearray(payload)
        flipped[at] ^= 0x10
        for bad in (payload[:at], bytes(flipped)):
            with pytest.raises(PayloadError):
                applied(base, bad)


def test_a_payload_of_another_layout_or_length_is_refused() -> None:
    base, target = model(1), model(2)
    spec = parse_codec("all/float16")
    for payload in (
        encode_difference(base, target, PARAMETERS, BUFFERS, spec, b"another!", SHAPES),
        encode_difference(base, target, PARAMETERS - 1, BUFFERS, spec, LAYOUT),
        encode_difference(base, target, PARAMETERS, BUFFERS - 1, spec, LAYOUT, SHAPES),
    ):
        with pytest.raises(PayloadError):
            applied(base, payload)


def test_a_difference_that_is_not_finite_is_refused_by_the_sender() -> None:
    base, target = model(1), model(2)
    target[3] = np.inf
    with pytest.raises(ValueError, match="inf at index 3"):
        encoded(base, target, "topk:0.1/int8")
