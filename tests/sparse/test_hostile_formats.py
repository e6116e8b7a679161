"""Hostile payloads of version 2: refused with a reason, whatever was altered, cut or invented."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse.codecs import PayloadError, decode, encode, parse_codec
from sparse.codecs.selection import Vector

LAYOUT = bytes(range(8))
SHAPES = ((4, 6), (6,), (5, 2, 3))
D = 60
VECTOR = np.random.default_rng(0).laplace(size=D).astype(np.float32)
MASK = np.arange(D) % 3 == 0
CODECS = [
    "all/bfloat16",
    "all/int8",
    "all/int4@8",
    "all/qsgd:1@whole",
    "all/sign",
    "all/drive@16",
    "topk:0.2/ternary/rans",
    "topk:0.2/ternary/rans@tensor",
    "topk:0.2/float16/rice@tensor",
    "topk:0.5@tensor/sign@8/rans",
    "randk:0.2/int4",
    "mask/sign",
    "mask/drive",
    "powersgd:1/float16",
]


def payload_of(name: str) -> bytes:
    return encode(VECTOR, parse_codec(name), LAYOUT, MASK, SHAPES, 3)


def read(payload: bytes, name: str | None = None, d: int = D) -> Vector:
    spec = parse_codec(name) if name else None
    mask = MASK if d == D and payload[5:6] == b"\2" else None
    return decode(payload, d, LAYOUT, spec, mask, SHAPES if d == D else None)


def refused(payload: bytes, name: str | None = None, d: int = D) -> str:
    with pytest.raises(PayloadError) as error:
        read(payload, name, d)
    return error.value.reason


def forge(body: bytes, codec: tuple[int, int, int], k: int, d: int = D, version: int = 2) -> bytes:
    head = struct.pack("<4sBBBBII8sQ", b"SFLV", version, *codec, d, k, LAYOUT, len(body))
    return head + struct.pack("<I", zlib.crc32(head + body)) + body


def resealed(payload: bytes) -> bytes:
    """With a right checksum, as whoever wants to harm sends it."""
    return payload[:32] + struct.pack("<I", zlib.crc32(payload[36:], zlib.crc32(payload[:32]))) + payload[36:]


@pytest.mark.parametrize("name", CODECS)
def test_a_payload_cut_anywhere_is_refused(name: str) -> None:
    payload = payload_of(name)
    assert {refused(payload[:end]) for end in range(len(payload))} == {"truncated"}
    assert refused(payload + b"\0") == "length"


@pytest.mark.parametrize("name", CODECS)
def test_a_payload_with_any_byte_altered_is_refused(name: str) -> None:
    payload = payload_of(name)
    for at in range(len(payload)):
        for flip in (0x01, 0x80, 0xFF):
            refused(payload[:at] + bytes([payload[at] ^ flip]) + payload[at + 1 :])


@pytest.mark.parametrize("name", CODECS)
def test_altered_bytes_behind_a_right_checksum_are_refused_or_finite(name: str) -> None:
    payload = payload_of(name)
    for at in range(len(payload)):
        for flip in (0x01, 0x10, 0x80, 0xFF):
            altered = resealed(payload[:at] + bytes([payload[at] ^ flip]) + payload[at + 1 :])
            try:
                arrived = read(altered)
            except PayloadError:
                continue
            assert arrived.shape == (D,)
            assert np.isfinite(arrived).all()


@pytest.mark.parametrize("name", CODECS)
def test_a_body_cut_behind_a_right_checksum_is_refused(name: str) -> None:
    payload = payload_of(name)
    for end in range(36, len(payload)):
        cut = payload[:24] + struct.pack("<Q", end - 36) + payload[32:end]
        refused(resealed(cut))


@pytest.mark.parametrize(
    ("sent", "asked", "reason"),
    [
        ("all/int8", "all/int4", "codec"),
        ("all/int8", "all/int8@whole", "codec"),
        ("all/int8", "all/sign", "codec"),
        ("all/sign", "all/sign@whole", "codec"),
        ("all/drive@16", "all/drive@32", "codec"),
        ("powersgd:1/float16", "powersgd:2/float16", "size"),
        ("powersgd:1/float16", "powersgd:1/bfloat16", "codec"),
        ("topk:0.2/ternary/rans", "topk:0.2/ternary/rice", "codec"),
        ("topk:0.2/ternary/rans", "topk:0.3/ternary", "size"),
        ("topk:0.2/ternary/rans", "topk:0.5@tensor/ternary", "size"),
        ("randk:0.2/int4", "randk:0.3/int4", "size"),
        ("randk:0.2/int4", "topk:0.2/int4", "codec"),
    ],
)
def test_a_payload_under_another_codec_than_asked_for_is_refused(sent: str, asked: str, reason: str) -> None:
    assert refused(payload_of(sent), asked) == reason


def test_what_version_1_can_say_is_not_said_in_version_2_nor_the_other_way_round() -> None:
    assert refused(forge(VECTOR.tobytes(), (0, 0, 0), D)) == "version"
    assert refused(forge(bytes(120), (0, 2, 0), D, version=1)) == "codec"
    assert refused(forge(bytes(120), (0, 2, 0), D, version=3)) == "version"
    assert refused(forge(bytes(120), (0, 6, 0), D)) == "codec"
    assert refused(forge(bytes(120), (5, 0, 0), D)) == "codec"
    assert refused(forge(bytes(120), (4, 3, 0), D)) == "codec"
    assert refused(forge(bytes(120), (3, 2, 1), D)) == "codec"


@pytest.mark.parametrize(
    ("reason", "codec", "k", "body"),
    [
        ("length", (0, 4, 0), D, b""),
        ("length", (0, 4, 0), D, struct.pack("<I", 2) + bytes(8)),  # a scale for every two values
        ("nonfinite", (0, 4, 0), D, struct.pack("<If", 0, np.inf) + bytes(8)),
        ("nonfinite", (0, 4, 0), D, struct.pack("<If", 0, -1.0) + bytes(8)),
        ("values", (0, 4, 0), D, struct.pack("<If", 0, 1.0) + b"\xff" * 8),  # padding
        ("length", (0, 3, 0), D, b"\0\0\0\0\7"),
        ("codec", (0, 3, 0), D, struct.pack("<IBB", 0, 0, 0)),
        ("codec", (0, 3, 0), D, struct.pack("<IBB", 0, 128, 0)),
        ("codec", (0, 3, 0), D, struct.pack("<IBB", 0, 7, 2)),
        ("length", (0, 3, 0), D, struct.pack("<IBBf", 0, 127, 0, 1.0) + bytes(59)),
        ("values", (0, 3, 0), D, struct.pack("<IBBf", 0, 127, 0, 1.0) + b"\xff" * 60),
        ("values", (0, 3, 0), D, struct.pack("<IBBf", 0, 7, 0, 1.0) + b"\xff" * 30),
        ("nonfinite", (0, 3, 0), D, struct.pack("<IBBf", 0, 127, 0, 3e38) + bytes(60)),
        ("length", (0, 3, 0), D, struct.pack("<IBBf", 0, 127, 1, 1.0) + bytes(60)),
        ("values", (0, 3, 0), D, struct.pack("<IBBfH3H", 0, 1, 1, 1.0, 0, 0, 16384, 0) + bytes(4)),
        ("values", (0, 3, 0), D, struct.pack("<IBBfH3H", 0, 1, 1, 1.0, 13, 0, 16384, 0) + bytes(52)),
        ("values", (0, 3, 0), D, struct.pack("<IBBfH3H", 0, 1, 1, 1.0, 1, 0, 16383, 0) + bytes(4)),
        ("values", (0, 3, 0), D, struct.pack("<IBBfH3H", 0, 1, 1, 1.0, 1, 0, 16384, 0) + bytes(4)),
        ("length", (0, 3, 0), D, struct.pack("<IBBfH3H", 0, 1, 1, 1.0, 2, 0, 16384, 0) + bytes(4)),
        ("codec", (0, 5, 0), D, struct.pack("<II", 0, 1) + bytes(8)),
        ("codec", (0, 5, 0), D, struct.pack("<II", 12, 1) + bytes(8)),
        ("codec", (0, 5, 0), D, struct.pack("<II", 1 << 21, 1) + bytes(12)),
        ("length", (0, 5, 0), D, struct.pack("<II", 1 << 20, 1) + bytes(11)),
        ("length", (0, 5, 0), D, b"\1\0\0\0"),
        ("length", (3, 4, 4), 8, struct.pack("<I", 9) + bytes(8)),
        ("length", (3, 4, 4), 8, b"\4\0\0"),
        ("length", (3, 4, 4), 8, struct.pack("<I", 3) + bytes(12)),
        ("size", (3, 4, 4), D + 1, bytes(30)),
        ("codec", (4, 0, 0), D, b""),
        ("codec", (4, 0, 0), D, b"\0" + bytes(240)),
        ("codec", (4, 0, 0), D, b"\x41" + bytes(240)),
        ("size", (4, 0, 0), D, b"\1" + bytes(240)),
        ("nonfinite", (4, 0, 0), 10 + 6 + 11, b"\1" + struct.pack("<27f", *[3e38] * 27)),
        ("indices", (1, 4, 6), 8, struct.pack("<I", 5) + b"\x7f" * 5 + struct.pack("<If", 0, 1.0) + b"\0"),
        ("indices", (1, 4, 7), 8, struct.pack("<I", 5) + b"\xff" * 5 + struct.pack("<If", 0, 1.0) + b"\0"),
    ],
)
def test_a_body_that_cannot_be_is_refused(reason: str, codec: tuple[int, int, int], k: int, body: bytes) -> None:
    assert refused(forge(body, codec, k)) in {reason, *(("length", "values") if codec[2] == 6 else ())}


FORMATS = st.sampled_from([(0, v, 0) for v in range(2, 6)] + [(1, v, i) for v in range(6) for i in (1, 2, 5, 6, 7)])


@settings(deadline=None, derandomize=True, max_examples=400)
@given(st.binary(max_size=60), FORMATS, st.integers(0, D), st.integers(0, 12))
def test_any_body_behind_a_right_checksum_is_decoded_or_refused(
    body: bytes, codec: tuple[int, int, int], k: int, split: int
) -> None:
    prefixed = struct.pack("<I", split) + body if codec[0] == 1 else body
    try:
        arrived = read(forge(prefixed, codec, D if codec[0] == 0 else k))
    except PayloadError:
        return
    assert arrived.shape == (D,)
    assert np.isfinite(arrived).all()


def test_a_small_payload_allocates_and_computes_in_proportion_to_its_vector() -> None:
    d = 1_000_000
    bodies = {
        (0, 4, 0): struct.pack("<I", 8) + bytes(1000),
        (0, 3, 0): struct.pack("<IBBfHH253HH", 0, 127, 1, 1.0, 1, 16384, *[0] * 253, 0) + bytes(4),
        (0, 5, 0): struct.pack("<II", 1, 1) + bytes(1000),
        (1, 4, 6): struct.pack("<I", 4) + bytes(100),
        (1, 4, 7): struct.pack("<I", 4) + bytes(100),
        (4, 0, 0): b"\1" + bytes(100),
    }
    tracemalloc.start()
    try:
        for codec, body in bodies.items():
            assert refused(forge(body, codec, d, d), d=d) in ("length", "values", "indices", "size")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 60_000_000


def test_many_tensors_of_different_density_take_little_memory() -> None:
    sizes = [1000 + 7 * i for i in range(200)]
    rng = np.random.default_rng(0)
    kept = [rng.random(size) < 0.2 * 0.97**i for i, size in enumerate(sizes)]
    vector, shapes = np.concatenate(kept).astype(np.float32), [(size,) for size in sizes]
    spec = parse_codec(f"topk:{vector.mean()}/ternary/rans@tensor")
    tracemalloc.start()
    try:
        payload = encode(vector, spec, LAYOUT, shapes=shapes)
        arrived = decode(payload, len(vector), LAYOUT, spec, shapes=shapes)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(arrived, vector)
    assert peak < 40 * len(vector)


@pytest.mark.parametrize("d", [0, 1])
@pytest.mark.parametrize("name", CODECS)
def test_empty_and_single_vectors_arrive(d: int, name: str) -> None:
    spec, vector, mask = parse_codec(name), np.full(d, -2.5, np.float32), np.ones(d, np.bool_)
    arrived = decode(encode(vector, spec, LAYOUT, mask), d, LAYOUT, spec, mask)
    # A single value is its own scale, but to QSGD a level is drawn; that of its norm is certain.
    np.testing.assert_allclose(arrived, vector, rtol=1e-6)
