"""The laws of every codec of version 2: same bits at both ends, known errors, bounded sizes, stated extremes."""

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse.codecs import decode, encode, encode_with_feedback, max_payload_bytes, parse_codec
from sparse.codecs.selection import Vector, top_k
from sparse.codecs.tensors import Shapes

LAYOUT = bytes(range(8))
SHAPES: Shapes = ((12, 5, 3), (12,), (0,), (40, 12), (40,), (1, 7))
D = 12 * 15 + 12 + 40 * 12 + 40 + 7

# Of each, omega: ||Q(x) - x||^2 <= (1 - omega) ||x||^2 for x of d values, whatever x is.
BIASED = {
    "all/bfloat16": 0.99,
    "all/int8": 0.75,
    "all/int4@16": 0.75,
    "all/int4@whole": 0.0,
    "all/sign": 1 / D,
    "all/sign@whole": 1 / D,
    "all/sign@32": 1 / D,
    "topk:0.1/ternary": 1 / D,
    "topk:0.1/ternary/bitmap": 1 / D,
    "topk:0.1/ternary@tensor/rice@tensor": 1 / D,
    "topk:0.1/float32/rans": 0.1,
    "topk:0.1@tensor/float16/rans@tensor": 0.0,
    "topk:0.4/int8/rans": 0.3,
    "topk:0.3/int4@8/rans@tensor": 0.0,
    "topk:0.3/bfloat16/rice@tensor": 0.29,
    "randk:0.2/float32": 0.0,
    "randk:0.2/sign": 0.0,
    "randk:1/float16": 0.9,
    "mask/int8": 0.0,
    "mask/sign": 0.0,
    "mask/bfloat16": 0.0,
    "powersgd:1/float32": 0.0,
    "powersgd:3/float16": 0.0,
    "powersgd:2/bfloat16": 0.0,
}
UNBIASED = [
    "all/int8-stochastic",
    "all/int4-stochastic@64",
    "all/qsgd:1@16",
    "all/qsgd:16",
    "all/drive",
    "all/drive@64",
    "topk:0.5/qsgd:4",
    "mask/drive@16",
    "mask/int4-stochastic",
]
CODECS = [*BIASED, *UNBIASED]
MASK = np.random.default_rng(8).random(D) < 0.4

quick = settings(deadline=None, derandomize=True, max_examples=25)


def vectors(elements: st.SearchStrategy[float]) -> st.SearchStrategy[Vector]:
    return hnp.arrays(np.float32, D, elements=elements)


def heavy(seed: int = 0, d: int = D) -> Vector:
    return np.random.default_rng(seed).laplace(size=d).astype(np.float32)


def sent(vector: Vector, name: str, seed: int = 7) -> Vector:
    spec = parse_codec(name)
    payload = encode(vector, spec, LAYOUT, MASK, SHAPES, seed)
    assert len(payload) <= max_payload_bytes(D, spec, MASK, SHAPES)
    assert encode(vector.copy(), spec, LAYOUT, MASK, SHAPES, seed) == payload
    arrived = decode(payload, D, LAYOUT, spec, MASK if spec.selection == "mask" else None, SHAPES)
    assert arrived.dtype == np.float32
    assert arrived.shape == (D,)
    assert np.isfinite(arrived).all()
    assert arrived.flags.writeable
    return arrived


def energy(vector: Vector) -> float:
    return float(np.square(vector, dtype=np.float64).sum())


def on(name: str, vector: Vector) -> Vector:
    """What the codec is asked to send: under a mask only what it keeps."""
    return np.where(MASK, vector, 0).astype(np.float32) if name.startswith("mask") else vector


EXTREMES = {
    "zero": np.zeros(D, np.float32),
    "negative zero": np.full(D, -0.0, np.float32),
    "equal": np.full(D, -0.125, np.float32),
    "denormal": np.full(D, 1e-45, np.float32),
    "small": heavy() * np.float32(1e-38),
    "huge": np.where(np.arange(D) % 2, 3.4e38, -3.4e38).astype(np.float32),
    "one alone": np.eye(1, D, 100, dtype=np.float32)[0],
    "far apart": np.geomspace(1e-38, 3e38, D).astype(np.float32),
    "normal": np.random.default_rng(1).standard_normal(D).astype(np.float32),
}


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_vectors_arrive_finite_and_zeros_as_zeros(name: str, extreme: str) -> None:
    vector = EXTREMES[extreme]
    arrived = sent(vector, name)
    if not vector.any():
        assert not arrived.any()


@pytest.mark.parametrize("name", BIASED)
@pytest.mark.parametrize("extreme", ["equal", "one alone", "normal", "huge", "heavy"])
def test_a_biased_codec_contracts_by_its_omega(name: str, extreme: str) -> None:
    vector = on(name, heavy() if extreme == "heavy" else EXTREMES[extreme])
    if extreme == "huge" and "float16" in name and "b" not in name.split("/")[1]:
        vector = vector * np.float32(1e-35)  # what float16 clips is another law's
    error = vector.astype(np.float64) - sent(vector, name)
    assert np.square(error).sum() <= (1 - BIASED[name]) * energy(vector) * (1 + 1e-5)


@quick
@given(vectors(st.floats(-1e3, 1e3, width=32)), st.sampled_from(list(BIASED)))
def test_a_biased_codec_contracts_whatever_the_vector(vector: Vector, name: str) -> None:
    vector = on(name, vector)
    error = vector.astype(np.float64) - sent(vector, name)
    # Rounding of numbers near the least that a format has: 2**-25 of float16, some 1e-45 of float32.
    least = D * 2.0**-50 if "float16" in name else D * 1e-80
    assert np.square(error).sum() <= (1 - BIASED[name]) * energy(vector) * (1 + 1e-5) + least


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_over_seeds_of_an_unbiased_codec_is_the_vector(name: str) -> None:
    vector = on(name, heavy(3))
    if name.startswith("topk"):
        vector[np.setdiff1d(np.arange(D), top_k(vector, D // 2))] = 0
    spec, mask = parse_codec(name), MASK if name.startswith("mask") else None
    payloads = [encode(vector, spec, LAYOUT, MASK, SHAPES, seed) for seed in range(100)]
    draws = np.array([decode(payload, D, LAYOUT, spec, mask, SHAPES) for payload in payloads], np.float64)
    error = draws.mean(axis=0) - vector
    variance = draws.var(axis=0, ddof=1)
    # A randomized Hadamard transform of so few values is not quite a random rotation: a bias below a hundredth is left.
    left = 0.01 * energy(vector) if "drive" in name else 0.0
    # The square of the error of a mean is the variance / 100, of all coordinates together within a third.
    assert 0 < np.square(error).sum() < 1.35 * variance.sum() / 100 + left
    # And no coordinate is six standard errors of the most uncertain one off, which chance does once in 10**6 runs.
    assert np.abs(error).max() < 6 * np.sqrt(variance.max() / 100) + left


@pytest.mark.parametrize("name", CODECS)
def test_what_was_sent_plus_the_residual_is_the_sum_of_the_updates(name: str) -> None:
    spec, mask = parse_codec(name), MASK if name.startswith("mask") else None
    residual, meant, told = np.zeros(D, np.float32), np.zeros(D), np.zeros(D)
    for step in range(20):
        delta = on(name, heavy(step))
        meant += delta
        before = delta.astype(np.float64) + residual
        payload, residual = encode_with_feedback(delta, residual, spec, LAYOUT, mask, SHAPES, step)
        arrived = decode(payload, D, LAYOUT, spec, mask, SHAPES)
        told += arrived
        if not residual.any() and spec.unbiased:  # an error that was larger than the vector is let go
            assert np.square(before - arrived).sum() > np.square(before).sum() * (1 - 1e-6)
            meant += arrived - before
    # Float32 sums of numbers of this size, twenty times: 2**-24 of the largest each.
    np.testing.assert_allclose(told + residual, meant, atol=20 * 2.0**-23 * np.abs(meant).max())


def test_residuals_of_unbiased_codecs_do_not_grow_without_bound() -> None:
    spec, residual = parse_codec("all/qsgd:1@whole"), np.zeros(D, np.float32)
    for step in range(50):
        _, residual = encode_with_feedback(heavy(step), residual, spec, LAYOUT, None, SHAPES, step)
        assert energy(residual) <= 4 * energy(heavy(step))


@quick
@given(st.integers(0, 300), st.sampled_from([n for n in CODECS if "mask" not in n]), st.integers(0, 2**32 - 1))
def test_vectors_of_any_length_arrive_without_tensors_too(d: int, name: str, seed: int) -> None:
    spec, vector = parse_codec(name), heavy(d, d)
    payload = encode(vector, spec, LAYOUT, seed=seed)
    assert len(payload) <= max_payload_bytes(d, spec)
    arrived = decode(payload, d, LAYOUT, spec)
    assert np.square(arrived - vector, dtype=np.float64).sum() <= 20 * energy(vector)
    assert decode(payload, d, LAYOUT).tobytes() == arrived.tobytes()


@pytest.mark.parametrize("name", ["all/int8", "all/sign@32", "topk:0.1/ternary", "topk:0.1/float16/rans"])
def test_another_seed_changes_nothing_where_nothing_is_drawn(name: str) -> None:
    spec = parse_codec(name)
    assert len({encode(heavy(), spec, LAYOUT, shapes=SHAPES, seed=seed) for seed in range(5)}) == 1


@pytest.mark.parametrize("name", ["randk:0.2/sign", "all/drive", "all/qsgd:4", "all/int8-stochastic"])
def test_another_seed_draws_something_else(name: str) -> None:
    spec = parse_codec(name)
    assert len({encode(heavy(), spec, LAYOUT, shapes=SHAPES, seed=seed) for seed in range(5)}) == 5


def test_topk_of_each_tensor_keeps_its_share_of_each() -> None:
    spec = parse_codec("topk:0.1@tensor/float32")
    vector = heavy() * np.repeat(np.array([1, 100, 1, 0.01, 1, 1], np.float32), [np.prod(s, dtype=int) for s in SHAPES])
    arrived = decode(encode(vector, spec, LAYOUT, shapes=SHAPES), D, LAYOUT, spec, shapes=SHAPES)
    at = 0
    for size in (180, 12, 480, 40, 7):
        part = slice(at, at + size)
        np.testing.assert_array_equal(np.flatnonzero(arrived[part]), top_k(vector[part], max(1, round(size / 10))))
        at += size


def test_random_k_sends_the_same_share_of_every_place_over_time() -> None:
    spec, hits = parse_codec("randk:0.25/float32"), np.zeros(D)
    for seed in range(400):
        hits += decode(encode(np.ones(D, np.float32), spec, LAYOUT, seed=seed), D, LAYOUT, spec)
    assert hits.sum() == 400 * round(0.25 * D)
    assert abs(hits - 100).max() < 6 * np.sqrt(400 * 0.25 * 0.75)


def test_random_k_costs_four_bytes_of_places() -> None:
    size = len(encode(heavy(), parse_codec("randk:0.2/sign@whole"), LAYOUT))
    assert size == 36 + 4 + 4 + 4 + 4 + -(-round(0.2 * D) // 8)


def test_powersgd_sends_a_matrix_of_its_rank_almost_exactly() -> None:
    rng = np.random.default_rng(2)
    left, right = rng.standard_normal((60, 2)), rng.standard_normal((2, 45))
    vector = (left @ right).astype(np.float32).ravel()
    shapes = ((60, 9, 5),)
    for rank, error in ((1, 0.9), (2, 1e-10), (5, 1e-10)):
        spec = parse_codec(f"powersgd:{rank}/float32")
        payload = encode(vector, spec, LAYOUT, shapes=shapes)
        assert len(payload) == max_payload_bytes(2700, spec, None, shapes) == 36 + 1 + 4 * rank * 105
        arrived = decode(payload, 2700, LAYOUT, spec, shapes=shapes)
        assert energy(vector - arrived) <= error * energy(vector)


def test_powersgd_is_near_the_best_of_its_rank() -> None:
    matrix = np.random.default_rng(3).standard_normal((50, 80)) * np.geomspace(1, 0.02, 80)
    values = np.linalg.svd(matrix, compute_uv=False)
    vector, shapes = matrix.astype(np.float32).ravel(), ((50, 80),)
    spec = parse_codec("powersgd:4/float32")
    arrived = decode(encode(vector, spec, LAYOUT, shapes=shapes), 4000, LAYOUT, shapes=shapes)
    best = float(np.square(values[4:]).sum())
    assert best * 0.999 <= energy(vector - arrived) <= 1.25 * best


def test_powersgd_multiplies_in_one_order_of_single_roundings() -> None:
    spec = parse_codec("powersgd:3/float32")
    payload = encode(heavy(4, 400), spec, LAYOUT, shapes=((20, 20),))
    factors = np.frombuffer(payload[37:], "<f4")
    p, q = factors[:60].reshape(20, 3), factors[60:].reshape(20, 3)
    arrived = decode(payload, 400, LAYOUT, spec, shapes=((20, 20),)).reshape(20, 20)
    for i in range(20):
        for j in range(20):
            total = np.float32(p[i, 0] * q[j, 0])
            for r in (1, 2):
                total = np.float32(total + np.float32(p[i, r] * q[j, r]))
            assert arrived[i, j].tobytes() == total.tobytes()


def test_drive_reconstructs_by_sums_of_ones_that_any_order_gives() -> None:
    d = 8192 + 700
    payload = encode(heavy(5, d), parse_codec("all/drive"), LAYOUT, seed=11)
    arrived = decode(payload, d, LAYOUT)
    body = np.frombuffer(payload[36:], np.uint8)
    scales, signs = body[8:16].copy().view("<f4"), np.unpackbits(body[16:], bitorder="little")[: 8192 + 1024]
    coins = 1 - 2 * np.unpackbits(
        np.random.PCG64([11, 0]).random_raw(-(-d // 64)).astype("<u8").view(np.uint8), bitorder="little"
    ).astype(int)
    at = 0
    for length, scale in ((8192, scales[0]), (1024, scales[1])):
        ones = 1 - 2 * signs[at : at + length].astype(np.int64)
        step = 1
        while step < length:  # in integers, which are exact
            pairs = ones.reshape(-1, 2, step)
            ones = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).ravel()
            step *= 2
        piece = ones.astype(np.float32) * scale
        count = min(length, d - at)
        np.testing.assert_array_equal(
            arrived[at : at + count], (piece[:count] * coins[at : at + count]).astype(np.float32)
        )
        at += length
    assert 0.5 < energy(arrived - heavy(5, d)) / energy(heavy(5, d)) < 0.65


def test_under_a_mask_nothing_of_a_new_codec_arrives_off_it() -> None:
    for name in ("all/sign", "randk:0.5/int8", "powersgd:1/float32", "all/drive", "mask/sign"):
        spec = parse_codec(name)
        payload, left = encode_with_feedback(heavy(), heavy(1), spec, LAYOUT, MASK, SHAPES)
        assert not decode(payload, D, LAYOUT, spec, MASK, SHAPES)[~MASK].any()
        assert not left[~MASK].any()


def test_tensors_that_are_not_the_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="tensors: 2 of 7 values are named where the vector has 8"):
        encode(np.zeros(8, np.float32), parse_codec("all/sign"), LAYOUT, shapes=((3,), (2, 2)))
    with pytest.raises(ValueError, match="seed: -1 must be from 0 to"):
        encode(np.zeros(8, np.float32), parse_codec("all/sign"), LAYOUT, seed=-1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CODECS)
def test_a_vector_that_is_not_finite_is_not_encoded(name: str, bad: float) -> None:
    vector = heavy()
    vector[7] = bad
    with pytest.raises(ValueError, match="at index 7"):
        encode(vector, parse_codec(name), LAYOUT, MASK, SHAPES)
