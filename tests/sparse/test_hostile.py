"""Hostile payloads are refused with a reason, never a crash, a hang or a large allocation."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse.codecs import PayloadError, decode, encode, parse_codec

LAYOUT = bytes(range(8))
D = 24
CODECS = ["all/float32", "all/float16", "topk:0.3/float16/rice", "topk:0.3/float32/bitmap"]
VECTOR = np.linspace(-1, 2, D).astype(np.float32)


def payload_of(name: str) -> bytes:
    return encode(VECTOR, parse_codec(name), LAYOUT)


def refused(payload: bytes, d: int = D, layout: bytes = LAYOUT) -> str:
    with pytest.raises(PayloadError) as error:
        decode(payload, d, layout)
    assert str(error.value).startswith(f"{error.value.reason}: ")
    return error.value.reason


def forge(
    body: bytes,
    *,
    codec: tuple[int, int, int] = (1, 0, 2),
    d: int = D,
    k: int = 2,
    length: int | None = None,
    magic: bytes = b"SFLV",
    version: int = 1,
) -> bytes:
    """A payload with a right checksum over whatever is said."""
    head = struct.pack("<4sBBBBII8sQ", magic, version, *codec, d, k, LAYOUT, len(body) if length is None else length)
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


VALUES = struct.pack("<2f", 1.0, 2.0)
# Width 2, gaps 1 and 6: quotients 0 and 1 are the bits 1, 0 1; remainders 01 and 10, lowest bit first.
RICE = bytes([2, 0b101, 0b1001])


def test_a_forged_payload_that_is_right_is_decoded() -> None:
    arrived = decode(forge(RICE + VALUES), D, LAYOUT)
    assert np.flatnonzero(arrived).tolist() == [1, 8]
    assert arrived[[1, 8]].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", CODECS)
def test_a_payload_cut_anywhere_is_refused(name: str) -> None:
    payload = payload_of(name)
    assert {refused(payload[:end]) for end in range(len(payload))} == {"truncated"}


@pytest.mark.parametrize("name", CODECS)
def test_a_payload_with_any_byte_altered_is_refused(name: str) -> None:
    payload = payload_of(name)
    for at in range(len(payload)):
        for flip in (0x01, 0x80, 0xFF):
            refused(payload[:at] + bytes([payload[at] ^ flip]) + payload[at + 1 :])


@pytest.mark.parametrize(
    ("reason", "payload"),
    [
        ("truncated", b""),
        ("truncated", b"SFLV"),
        ("truncated", forge(RICE + VALUES)[:-1]),
        ("length", forge(RICE + VALUES) + b"\0"),
        ("magic", forge(RICE + VALUES, magic=b"PK\x03\x04")),
        ("version", forge(RICE + VALUES, version=2)),
        ("codec", forge(RICE + VALUES, codec=(3, 0, 2))),
        ("codec", forge(RICE + VALUES, codec=(2, 0, 2))),
        ("codec", forge(bytes(8) + VALUES, codec=(1, 0, 3))),
        ("length", forge(RICE + VALUES, codec=(2, 0, 3))),
        ("mask", forge(bytes(8) + VALUES, codec=(2, 0, 3))),
        ("codec", forge(RICE + VALUES, codec=(1, 2, 2))),
        ("codec", forge(RICE + VALUES, codec=(1, 0, 0))),
        ("codec", forge(RICE + VALUES, codec=(0, 0, 1))),
        ("size", forge(RICE + VALUES, d=D + 1)),
        ("size", forge(RICE + VALUES, d=2**32 - 1)),
        ("size", forge(RICE + VALUES, k=D + 1)),
        ("size", forge(VALUES, codec=(0, 0, 0), k=2)),
        ("length", forge(VALUES, codec=(0, 0, 0), k=D)),
        ("length", forge(VALUES, codec=(1, 0, 1))),
        ("length", forge(VALUES, k=3)),
        ("truncated", forge(RICE + VALUES, length=2**63)),
        ("truncated", forge(RICE + VALUES, length=2**64 - 1)),
    ],
)
def test_a_header_that_cannot_be_is_refused(reason: str, payload: bytes) -> None:
    assert refused(payload) == reason


def test_a_payload_of_another_model_is_refused() -> None:
    assert refused(payload_of("all/float32"), layout=bytes(8)) == "layout"


@pytest.mark.parametrize(
    ("reason", "index_bytes"),
    [
        ("indices", b""),
        ("indices", bytes([31, 0b101, 0b1001])),
        ("indices", bytes([255])),
        ("length", bytes([2])),
        ("length", bytes([30]) + bytes(7)),
        ("length", bytes([2]) + bytes(100)),
        ("indices", bytes([2, 0b001, 0b1001])),  # one quotient missing
        ("indices", bytes([2, 0b111, 0b1001])),  # one too many
        ("indices", bytes([1, 0b101, 0, 0b01])),  # an empty byte after the last quotient
        ("indices", bytes([2, 0b101, 0b11001])),  # padding
        ("indices", bytes([2, 0b10000001, 0b1001])),  # beyond the vector
        ("indices", bytes([30, 0b11]) + b"\xff" * 7 + b"\x0f"),  # beyond the vector, by as much as can be
    ],
)
def test_rice_codes_that_are_no_set_of_indices_are_refused(reason: str, index_bytes: bytes) -> None:
    assert refused(forge(index_bytes + VALUES)) == reason


@pytest.mark.parametrize("bits", [0b1, 0b111, 0])
def test_a_bitmap_with_another_number_of_bits_is_refused(bits: int) -> None:
    assert refused(forge(bytes([bits, 0, 0]) + VALUES, codec=(1, 0, 1))) == "indices"


def test_a_bitmap_with_bits_in_its_padding_is_refused() -> None:
    payload = forge(bytes([0, 0, 0b110000]) + VALUES, codec=(1, 0, 1), d=21)
    assert refused(payload, d=21) == "indices"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    assert refused(forge(RICE + struct.pack("<2f", 1.0, value))) == "nonfinite"
    assert refused(forge(RICE + struct.pack("<2e", value, 1.0), codec=(1, 1, 2))) == "nonfinite"
    assert refused(forge(struct.pack("<f", value), codec=(0, 0, 0), d=1, k=1), d=1) == "nonfinite"


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.binary(max_size=40),
    st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(0, 2)),
    st.integers(0, 30),
    st.integers(0, 30),
)
def test_any_body_behind_a_right_checksum_is_decoded_or_refused(
    body: bytes, codec: tuple[int, int, int], d: int, k: int
) -> None:
    try:
        arrived = decode(forge(body, codec=codec, d=d, k=k), d, LAYOUT)
    except PayloadError:
        return
    assert arrived.shape == (d,)
    assert np.isfinite(arrived).all()
    assert np.count_nonzero(arrived) <= k


def test_a_small_payload_allocates_little_more_than_its_vector() -> None:
    d = 1_000_000
    # The longest quotients that a width of 0 allows: the most that a decoder must unpack.
    unary = bytes(d // 8 - 1) + b"\xc0"
    payload = forge(b"\0" + unary + VALUES, d=d)
    tracemalloc.start()
    try:
        assert np.flatnonzero(decode(payload, d, LAYOUT)).tolist() == [d - 2, d - 1]
        assert refused(forge(bytes(10_000_000) + VALUES, d=d), d=d) == "length"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40_000_000
