"""Index sets by Rice with a width for each tensor and by rANS: they arrive, near the bound, within their limits."""

from math import lgamma, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse.codecs import PayloadError, encode, parse_codec
from sparse.codecs.entropy_indices import decode_entropy, encode_entropy, max_entropy_size
from sparse.codecs.rans import TOTAL, Model, decode_symbols, encode_symbols
from sparse.codecs.rice_tensors import decode_rice_tensors, encode_rice_tensors, max_rice_tensors_size
from sparse.codecs.selection import Indices
from sparse.codecs.tensors import Offsets

CODINGS = {
    "rice@tensor": (encode_rice_tensors, decode_rice_tensors, max_rice_tensors_size),
    "rans": (encode_entropy, decode_entropy, max_entropy_size),
}
quick = settings(deadline=None, derandomize=True, max_examples=60)


def chosen(d: int, fraction: float, seed: int = 0) -> Indices:
    return np.sort(np.random.default_rng(seed).choice(d, int(fraction * d), replace=False))


def bound(d: int, k: int) -> float:
    return (lgamma(d + 1) - lgamma(k + 1) - lgamma(d - k + 1)) / log(2)


def check(coding: str, indices: Indices, offsets: Offsets) -> int:
    encode_indices, decode_indices, most = CODINGS[coding]
    data = encode_indices(indices, offsets)
    assert len(data) <= most(len(indices), offsets)
    arrived = decode_indices(np.frombuffer(data, np.uint8), len(indices), offsets)
    np.testing.assert_array_equal(arrived, indices)
    return len(data)


@pytest.mark.parametrize("d", [100_000, 1_000_000])
@pytest.mark.parametrize("fraction", [0.001, 0.003, 0.01, 0.05, 0.1, 0.2, 0.24, 0.25, 0.32, 0.38, 0.42, 0.5])
def test_rans_is_within_two_percent_of_the_bound(d: int, fraction: float) -> None:
    size = check("rans", chosen(d, fraction), np.array([0, d]))
    assert bound(d, int(fraction * d)) <= 8 * size <= 1.02 * bound(d, int(fraction * d))


@pytest.mark.parametrize("coding", CODINGS)
def test_tensors_of_different_density_cost_less_when_told_apart(coding: str) -> None:
    offsets = np.array([0, 50_000, 100_000])
    indices = np.concatenate([chosen(50_000, 0.1), 50_000 + chosen(50_000, 0.002)])
    apart, together = check(coding, indices, offsets), check(coding, indices, offsets[[0, -1]])
    assert apart < 0.9 * together
    assert 8 * apart < 1.03 * (bound(50_000, 5000) + bound(50_000, 100))


@quick
@given(
    st.sampled_from(list(CODINGS)),
    st.lists(st.tuples(st.integers(0, 400), st.floats(0, 1)), min_size=1, max_size=6),
    st.integers(0, 9),
)
def test_any_set_in_any_tensors_arrives(coding: str, tensors: list[tuple[int, float]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *(size for size, _ in tensors)])
    kept = [rng.random(size) < density for size, density in tensors]
    check(coding, np.flatnonzero(np.concatenate([np.zeros(0, np.bool_), *kept])), offsets)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("d", [1, 2, 9, 5000])
def test_extreme_sets_arrive(coding: str, d: int) -> None:
    for indices in (
        np.arange(0),
        np.arange(d),
        np.array([0]),
        np.array([d - 1]),
        np.arange(d // 2),
        np.arange(d // 2, d),
    ):
        check(coding, indices, np.array([0, d]))
        check(coding, indices, np.array([0, d // 3, d // 3, d]))


def test_auto_is_the_shortest_of_what_it_chooses_from() -> None:
    rng, shapes = np.random.default_rng(0), ((100, 50), (5000,))
    uneven = (rng.standard_normal(10_000) * np.repeat([10, 1], 5000)).astype(np.float32)
    for vector in (uneven, rng.standard_normal(10_000).astype(np.float32)):
        for fraction in (0.01, 0.1, 0.3, 0.5, 0.7):
            sizes = {
                name: len(encode(vector, parse_codec(f"topk:{fraction}/ternary/{name}"), bytes(8), shapes=shapes))
                for name in ("auto", "bitmap", "rans", "rans@tensor", "rice")
            }
            assert sizes["auto"] <= 1.01 * min(sizes.values())


@quick
@given(st.integers(0, 2000), st.integers(1, 40), st.integers(0, 99), st.integers(1, 3))
def test_symbols_and_what_the_lanes_began_with_arrive(n: int, lanes: int, seed: int, rows: int) -> None:
    rng = np.random.default_rng(seed)
    frequencies = np.array([[TOTAL - 30, 0, 20, 9, 1], [1, 1, 1, 1, TOTAL - 4], [0, 0, TOTAL, 0, 0]])[:rows]
    contexts = rng.integers(0, rows, n) if rows > 1 else None
    rows_of = np.zeros(n, np.int64) if contexts is None else contexts
    allowed = [np.flatnonzero(row) for row in frequencies]
    symbols = np.array([rng.choice(allowed[row]) for row in rows_of], np.uint8)
    spare = rng.integers(0, 1 << 16, lanes).astype(np.uint16)
    data = encode_symbols(symbols, Model(frequencies), spare, contexts)
    found, begun, used = decode_symbols(np.frombuffer(data + b"xyz", np.uint8), n, Model(frequencies), lanes, contexts)
    assert found.tobytes() == symbols.tobytes()
    assert begun.tobytes() == spare.tobytes()
    assert used == len(data)


@quick
@given(st.sampled_from(list(CODINGS)), st.binary(max_size=60), st.integers(0, 60), st.booleans())
def test_any_bytes_are_a_set_of_indices_or_refused(coding: str, data: bytes, k: int, dense: bool) -> None:
    offsets = np.array([0, 20, 20, 60]) if dense else np.array([0, 1000, 2000, 2000, 3000])
    try:
        indices = CODINGS[coding][1](np.frombuffer(data, np.uint8), k, offsets)
    except PayloadError:
        return
    assert len(indices) == k
    assert (np.diff(indices) > 0).all()
    assert k == 0 or (indices[0] >= 0 and indices[-1] < offsets[-1])


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("fraction", [0.05, 0.4])
def test_a_set_with_any_byte_altered_is_another_set_or_refused(coding: str, fraction: float) -> None:
    encode_indices, decode_indices, _ = CODINGS[coding]
    offsets, indices = np.array([0, 100, 400]), chosen(400, fraction)
    data = encode_indices(indices, offsets)
    for at in range(len(data)):
        for flip in (0x01, 0x80, 0xFF):
            altered = np.frombuffer(data, np.uint8).copy()
            altered[at] ^= flip
            try:
                other = decode_indices(altered, len(indices), offsets)
            except PayloadError:
                continue
            assert len(other) == len(indices)
            assert other.tolist() == sorted(set(other.tolist()))
            assert other[-1] < 400
    for end in range(len(data)):
        with pytest.raises(PayloadError):
            decode_indices(np.frombuffer(data[:end], np.uint8), len(indices), offsets)
    with pytest.raises(PayloadError):
        decode_indices(np.frombuffer(data + b"\0", np.uint8), len(indices), offsets)
