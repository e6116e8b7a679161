"""Error feedback loses nothing: what was sent and what is left add up to what was meant."""

import hypothesis.extra.numpy as hnp
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse.codecs import PayloadError, decode, encode, encode_with_feedback, parse_codec
from sparse.codecs.selection import Vector
from sparse.codecs.update import decode_update, encode_update, max_update_bytes

LAYOUT = bytes(range(8))
CODECS = ["all/float32", "all/float16", "topk:0.1/float32/rice", "topk:0.2/float16/auto", "topk:0.1/float32/bitmap"]
quick = settings(deadline=None, derandomize=True, max_examples=30)


def deltas(elements: st.SearchStrategy[float]) -> st.SearchStrategy[npt.NDArray[np.float32]]:
    shape = st.tuples(st.integers(1, 12), st.integers(1, 60))
    return shape.flatmap(lambda s: hnp.arrays(np.float32, s, elements=elements))


@quick
@given(deltas(st.integers(-1000, 1000).map(float)), st.sampled_from(CODECS))
def test_what_was_sent_plus_the_residual_is_the_sum_of_the_deltas(rounds: Vector, name: str) -> None:
    spec, residual = parse_codec(name), np.zeros(rounds.shape[1], np.float32)
    sent = np.zeros_like(residual)
    for delta in rounds:
        payload, residual = encode_with_feedback(delta, residual, spec, LAYOUT)
        sent += decode(payload, len(delta), LAYOUT)
    # Small whole numbers: every sum here is exact in float32, so the law must be.
    np.testing.assert_array_equal(sent + residual, rounds.sum(axis=0))


@quick
@given(deltas(st.floats(-(2.0**100), 2.0**100, width=32)), st.sampled_from(CODECS))
def test_the_residual_is_what_the_receiver_did_not_get(rounds: Vector, name: str) -> None:
    spec, residual = parse_codec(name), np.zeros(rounds.shape[1], np.float32)
    for delta in rounds:
        corrected = delta + residual
        payload, residual = encode_with_feedback(delta, residual, spec, LAYOUT)
        assert residual.tobytes() == (corrected - decode(payload, len(delta), LAYOUT)).tobytes()


def test_every_value_is_sent_in_the_end() -> None:
    spec, residual = parse_codec("topk:0.1/float16/rice"), np.arange(1, 51, dtype=np.float32)
    for _ in range(10):
        _, residual = encode_with_feedback(np.zeros(50, np.float32), residual, spec, LAYOUT)
    assert not residual.any()


def test_what_float16_clips_is_sent_later() -> None:
    spec, residual, sent = parse_codec("all/float16"), np.zeros(1, np.float32), 0.0
    payload, residual = encode_with_feedback(np.array([150_000], np.float32), residual, spec, LAYOUT)
    sent += decode(payload, 1, LAYOUT)[0]
    assert residual[0] == 150_000 - 65504
    for _ in range(2):
        payload, residual = encode_with_feedback(np.zeros(1, np.float32), residual, spec, LAYOUT)
        sent += decode(payload, 1, LAYOUT)[0]
    assert sent + residual[0] == 150_000
    assert abs(residual[0]) < 16


def test_dense_float32_leaves_no_residual() -> None:
    _, residual = encode_with_feedback(
        np.ones(9, np.float32), np.full(9, 0.5, np.float32), parse_codec("all/float32"), LAYOUT
    )
    assert not residual.any()


def test_a_residual_that_overflows_is_refused_and_one_of_another_length_too() -> None:
    huge = np.full(3, 3e38, np.float32)
    with pytest.raises(ValueError, match="inf at index 0"):
        encode_with_feedback(huge, huge, parse_codec("all/float32"), LAYOUT)
    with pytest.raises(ValueError, match=r"residual: \(2,\) does not fit"):
        encode_with_feedback(huge, huge[:2], parse_codec("all/float32"), LAYOUT)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("n_buffers", [0, 1, 40])
def test_an_update_carries_parameters_and_exact_buffers(name: str, n_buffers: int) -> None:
    rng, spec = np.random.default_rng(1), parse_codec(name)
    delta, residual = rng.standard_normal((2, 200)).astype(np.float32)
    buffers = rng.standard_normal(n_buffers).astype(np.float32)
    payload, left = encode_update(delta, buffers, residual, spec, LAYOUT)
    frame, same_left = encode_with_feedback(delta, residual, spec, LAYOUT)
    parameters, arrived = decode_update(payload, 200, n_buffers, LAYOUT, spec)
    assert parameters.tobytes() == decode(frame, 200, LAYOUT).tobytes()
    assert arrived.tobytes() == buffers.tobytes()
    assert left.tobytes() == same_left.tobytes()
    assert len(payload) <= max_update_bytes(200, n_buffers, spec)


def refused(payload: bytes, n_parameters: int = 20, n_buffers: int = 4, codec: str | None = None) -> str:
    with pytest.raises(PayloadError) as error:
        decode_update(payload, n_parameters, n_buffers, LAYOUT, parse_codec(codec) if codec else None)
    return error.value.reason


def test_an_update_that_does_not_fit_is_refused_with_its_reason() -> None:
    spec = parse_codec("topk:0.2/float16/rice")
    parameters, buffers = np.arange(20, dtype=np.float32), np.ones(4, np.float32)
    payload, _ = encode_update(parameters, buffers, np.zeros(20, np.float32), spec, LAYOUT)
    assert decode_update(payload, 20, 4, LAYOUT, spec)[1].tobytes() == buffers.tobytes()
    assert refused(payload, n_parameters=21) == "size"
    assert refused(payload, n_buffers=5) == "size"
    assert refused(payload + b"\0") == "length"
    assert refused(payload, codec="topk:0.2/float32/rice") == "codec"
    assert refused(payload, codec="topk:0.3/float16/rice") == "size"
    frame = encode(parameters, spec, LAYOUT)
    assert refused(frame) == "truncated"
    assert refused(frame[:-1]) == "truncated"
    assert refused(frame + encode(buffers, parse_codec("all/float16"), LAYOUT)) == "codec"


def test_an_update_cut_or_altered_anywhere_is_refused() -> None:
    payload, _ = encode_update(
        np.ones(5, np.float32), np.ones(2, np.float32), np.zeros(5, np.float32), parse_codec("topk:0.5/float16"), LAYOUT
    )
    for end in range(len(payload)):
        refused(payload[:end], 5, 2)
    for at in range(len(payload)):
        refused(payload[:at] + bytes([payload[at] ^ 0x10]) + payload[at + 1 :], 5, 2)
