"""The shared mask: updates packed on it, masks on their way to devices, and reports of gradients off it."""

import struct

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse.codecs import (
    PayloadError,
    Shared,
    decode,
    decode_mask,
    decode_report,
    decode_update,
    encode,
    encode_mask,
    encode_update,
    encode_with_feedback,
    max_mask_bytes,
    max_payload_bytes,
    max_update_bytes,
    parse_codec,
)
from sparse.masks import Mask, mask_digest, masked

LAYOUT = bytes(range(8))
VALUES = ["float32", "float16"]
quick = settings(deadline=None, derandomize=True, max_examples=60)


def random(n: int, sparsity: float, seed: int = 0) -> tuple[npt.NDArray[np.float32], Mask]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(n).astype(np.float32), rng.random(n) >= sparsity


def refusal(payload: bytes, d: int, mask: Mask | None, codec: str | None = None) -> str:
    with pytest.raises(PayloadError) as error:
        decode(payload, d, LAYOUT, parse_codec(codec) if codec else None, mask)
    return error.value.reason


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9, 1.0])
def test_values_on_the_mask_arrive_and_cost_no_index_bits(values: str, sparsity: float) -> None:
    vector, mask = random(1000, sparsity)
    spec = parse_codec(f"mask/{values}")
    payload = encode(vector, spec, LAYOUT, mask)
    size = 4 if values == "float32" else 2
    assert len(payload) == 36 + 8 + size * np.count_nonzero(mask) == max_payload_bytes(1000, spec, mask)
    arrived = decode(payload, 1000, LAYOUT, spec, mask)
    exact = vector.astype(np.float16).astype(np.float32) if values == "float16" else vector
    assert arrived.tobytes() == masked(exact, mask).tobytes()


def test_on_a_mask_that_keeps_all_the_values_are_those_of_the_dense_codec() -> None:
    vector, _ = random(50, 0)
    ones = np.ones(50, np.bool_)
    dense = decode(encode(vector, parse_codec("all/float32"), LAYOUT), 50, LAYOUT)
    shared = decode(encode(vector, parse_codec("mask/float32"), LAYOUT, ones), 50, LAYOUT, mask=ones)
    assert shared.tobytes() == dense.tobytes()


def test_a_payload_on_another_mask_is_refused_as_mask() -> None:
    vector, mask = random(40, 0.5)
    payload = encode(vector, parse_codec("mask/float16"), LAYOUT, mask)
    other = mask.copy()
    # As many values, so that nothing but the digest tells.
    other[np.flatnonzero(mask)[0]], other[np.flatnonzero(~mask)[0]] = False, True
    assert refusal(payload, 40, other) == "mask"
    assert refusal(payload, 40, ~mask) == "mask"
    assert refusal(payload, 40, None) == "mask"


def test_a_payload_that_lies_about_its_mask_is_refused() -> None:
    vector, mask = random(40, 0.5)
    payload = encode(vector, parse_codec("mask/float32"), LAYOUT, mask)
    k = int(np.count_nonzero(mask))
    longer = payload[:12] + struct.pack("<I8sQ", k + 1, LAYOUT, 8 + 4 * k + 4) + payload[32:] + bytes(4)
    assert refusal(longer, 40, mask) == "size"
    assert refusal(payload, 40, mask, "mask/float16") == "codec"
    assert refusal(payload, 40, mask, "all/float32") == "codec"
    dense = encode(vector, parse_codec("all/float32"), LAYOUT)
    assert refusal(dense, 40, mask, "mask/float32") == "codec"
    assert refusal(payload + b"\0", 40, mask) == "length"
    for end in range(len(payload)):
        assert refusal(payload[:end], 40, mask) == "truncated"
    for at in range(len(payload)):
        refusal(payload[:at] + bytes([payload[at] ^ 0x10]) + payload[at + 1 :], 40, mask)


def test_packing_on_no_mask_or_one_of_another_length_is_refused() -> None:
    vector, mask = random(40, 0.5)
    with pytest.raises(ValueError, match="mask: none is here where mask/float32 needs one of 40 places"):
        encode(vector, parse_codec("mask/float32"), LAYOUT)
    with pytest.raises(ValueError, match="mask: one of 39 places is here"):
        encode(vector, parse_codec("mask/float32"), LAYOUT, mask[:-1])


@pytest.mark.parametrize("codec", ["mask/float32", "mask/float16", "topk:0.1/float16", "all/float16"])
def test_what_the_mask_leaves_out_is_neither_sent_nor_carried_on(codec: str) -> None:
    spec = parse_codec(codec)
    delta, mask = random(300, 0.8, seed=3)
    residual = np.full(300, 0.1, np.float32)
    payload, left = encode_with_feedback(delta, residual, spec, LAYOUT, mask)
    arrived = decode(payload, 300, LAYOUT, spec, mask)
    assert not arrived[~mask].any()
    assert not left[~mask].any()
    np.testing.assert_array_equal(left[mask], (delta + residual - arrived)[mask])


@quick
@given(st.integers(0, 300), st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1), st.booleans())
def test_a_mask_arrives_whole_or_as_a_difference(n: int, seed: int, keep: float, flip: float, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    base = None if whole else rng.random(n) < keep
    mask = rng.random(n) < keep if base is None else base ^ (rng.random(n) < flip)
    data = encode_mask(mask, base)
    assert len(data) <= max_mask_bytes(n)
    assert decode_mask(data, n, base).tolist() == mask.tolist()


def test_a_difference_is_much_smaller_than_a_mask_and_a_mask_than_a_bit_a_place() -> None:
    _, base = random(100_000, 0.9)
    mask = base.copy()
    mask[:2000] ^= True
    whole, difference = encode_mask(base), encode_mask(mask, base)
    assert len(whole) < 0.5 * 100_000 / 8
    assert len(difference) < 0.1 * len(whole)


def test_a_difference_to_another_base_gives_another_mask_which_its_digest_tells() -> None:
    _, base = random(100, 0.9)
    mask = ~base
    wrong = decode_mask(encode_mask(mask, base), 100, np.zeros(100, np.bool_))
    assert mask_digest(wrong) != mask_digest(mask)


def test_the_bytes_of_a_mask_stay_what_they_are() -> None:
    mask = np.zeros(40, np.bool_)
    mask[[1, 8]] = True
    # Rice: width 1, gaps 1 and 6, quotients 0 and 3, remainders 1 and 0.
    assert encode_mask(mask).hex() == "02" + "28000000" + "02000000" + "011101"
    assert encode_mask(~mask).hex() == "01" + "28000000" + "26000000" + "fdfeffffff"


def test_bytes_that_are_no_mask_are_refused() -> None:
    mask = np.zeros(40, np.bool_)
    mask[[1, 8]] = True
    good = encode_mask(mask)
    cases = [
        ("truncated", good[:8]),
        ("codec", b"\0" + good[1:]),
        ("codec", b"\3" + good[1:]),
        ("size", struct.pack("<BII", 2, 41, 2) + good[9:]),
        ("size", struct.pack("<BII", 2, 40, 41) + good[9:]),
        ("size", struct.pack("<BII", 1, 2**32 - 1, 2**32 - 1) + bytes(5)),
        ("indices", good[:9]),
        ("length", good + bytes(30)),
        ("length", struct.pack("<BII", 1, 40, 2) + bytes(4)),
        ("indices", struct.pack("<BII", 1, 40, 3) + bytes([3, 0, 0, 0, 0])),
    ]
    for reason, data in cases:
        with pytest.raises(PayloadError) as error:
            decode_mask(data, 40)
        assert error.value.reason == reason, data.hex()


@quick
@given(st.binary(max_size=30), st.integers(0, 40), st.integers(0, 40), st.integers(0, 2))
def test_any_bytes_are_a_mask_or_refused(body: bytes, n: int, k: int, coding: int) -> None:
    try:
        mask = decode_mask(struct.pack("<BII", coding, n, k) + body, n)
    except PayloadError:
        return
    assert len(mask) == n
    assert np.count_nonzero(mask) == k


@pytest.mark.parametrize("report", [1, 7, 80, 10_000])
def test_a_report_tells_the_largest_gradients_off_the_mask(report: int) -> None:
    spec, n = parse_codec("mask/float16"), 100
    delta, mask = random(n, 0.8, seed=5)
    gradient, _ = random(n, 0, seed=6)
    shared = Shared(mask, report)
    buffers = np.ones(3, np.float32)
    payload, _ = encode_update(delta, buffers, np.zeros(n, np.float32), spec, LAYOUT, shared, gradient)
    assert len(payload) <= max_update_bytes(n, 3, spec, shared)
    assert decode_update(payload, n, 3, LAYOUT, spec, shared)[1].tobytes() == buffers.tobytes()
    told = decode_report(payload, LAYOUT, shared)
    assert not told[mask].any()
    assert np.count_nonzero(told) == min(report, shared.off)
    least = np.abs(told[told != 0]).min()
    assert np.abs(gradient[~mask & (told == 0)]).max(initial=0) <= least * 1.001
    np.testing.assert_allclose(told[told != 0], gradient[told != 0], rtol=1e-3)


def test_a_report_that_is_missing_short_long_or_not_asked_for_is_refused() -> None:
    spec, n = parse_codec("mask/float16"), 100
    delta, mask = random(n, 0.8, seed=5)

    def packed(report: int) -> bytes:
        return encode_update(
            delta, delta[:3], np.zeros(n, np.float32), spec, LAYOUT, Shared(mask, report), delta * 0 + 1
        )[0]

    def reason(payload: bytes, report: int) -> str:
        with pytest.raises(PayloadError) as error:
            decode_update(payload, n, 3, LAYOUT, spec, Shared(mask, report))
        return error.value.reason

    assert reason(packed(0), 5) == "truncated"
    assert reason(packed(5), 0) == "length"
    assert reason(packed(4), 5) == reason(packed(6), 5) == "size"
    assert reason(packed(5)[:-1], 5) == "truncated"
    assert reason(packed(5) + b"\0", 5) == "length"
    altered = bytearray(packed(5))
    altered[-1] = 0x7C  # float16's infinity, and no longer the checksum's bytes
    assert reason(bytes(altered), 5) == "checksum"


def test_a_mask_that_keeps_all_has_an_empty_report() -> None:
    spec, delta = parse_codec("mask/float32"), np.ones(5, np.float32)
    shared = Shared(np.ones(5, np.bool_), 3)
    payload, _ = encode_update(delta, delta, np.zeros(5, np.float32), spec, LAYOUT, shared, delta)
    assert decode_update(payload, 5, 5, LAYOUT, spec, shared)[0].tobytes() == delta.tobytes()
    assert not decode_report(payload, LAYOUT, shared).any()
