"""The wire format in bytes, and that nothing hostile gets through it."""

import dataclasses
import random
import struct
import tracemalloc
from typing import Any

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.cbor import MAX_DEPTH, MAX_ITEMS, flaw
from protocol.envelope import TYPES, Envelope, decode, encode
from protocol.errors import Rejection
from protocol.messages import (
    MAX_CHUNKS,
    MAX_MESSAGE_BYTES,
    MAX_TEXT,
    TWO_AGENTS,
    Body,
    CoordinatorState,
    Hello,
    Offer,
    TaskReport,
    Welcome,
)
from tests.protocol.samples import SAMPLES, D, envelopes

# boot 3, sequence 7, 4096 bytes sent before. Changing one of these breaks every device in the field.
GOLDEN = {
    "Hello": (
        "a600010101020303070419100005a4656167656e7465302e312e30676261636b656e6468706f727461626c65647461736b63"
        "722f31666f7574626f7802"
    ),
    "Welcome": "a600010102020303070419100005a26372756e61726674696d655f73fb3ff8000000000000",
    "Task": (
        "a600010103020303070419100005ad6372756e617265726f756e6401686d616e6966657374a2666469676573745820000102"
        "030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f6473697a65190384656d6f64656ca2666469676573"
        "745820000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f6473697a651a000111706776657273"
        "696f6e046b6c6f63616c5f7374657073006c6c6f63616c5f65706f636873016a62617463685f73697a6518206d6c6561726e"
        "696e675f72617465fb3fa999999999999a696f7074696d697a6572a8646e616d6563736764686d6f6d656e74756dfb000000"
        "0000000000686e65737465726f76f46c7765696768745f6465636179fb0000000000000000656265746131fb3feccccccccc"
        "cccd656265746132fb3feff7ced916872b67657073696c6f6efb3e45798ee2308c3a6870726f78696d616cfb000000000000"
        "000065636f64656364746f706b6473656564096b74696d655f6c6566745f73fb404e000000000000"
    ),
    "TaskReport": (
        "a600010104020303070419100005a6647461736b63722f316573746174656772656675736564686578616d706c65730a6762"
        "61636b656e6468706f727461626c6566726561736f6e666d656d6f72796664657461696c69746f6f206c61726765"
    ),
    "Offer": (
        "a600010105020303070419100005ac64626c6f62a2666469676573745820000102030405060708090a0b0c0d0e0f10111213"
        "1415161718191a1b1c1d1e1f6473697a65016372756e617265726f756e64016b7570646174655f626f6f74036f7570646174"
        "655f73657175656e63650664626173655820000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
        "686578616d706c65730a65737465707314646c6f7373fb3fd000000000000067747261696e5f73fb3ff80000000000006563"
        "6f64656364746f706b6776617269616e746468656164"
    ),
    "Need": (
        "a600010106020303070419100005a2666469676573745820000102030405060708090a0b0c0d0e0f10111213141516171819"
        "1a1b1c1d1e1f67696e646963657383000119ffff"
    ),
    "Chunk": (
        "a600010107020303070419100005a3666469676573745820000102030405060708090a0b0c0d0e0f10111213141516171819"
        "1a1b1c1d1e1f65696e6465780164646174614200ff"
    ),
    "Receipt": (
        "a600010108020303070419100005a5666469676573745820000102030405060708090a0b0c0d0e0f10111213141516171819"
        "1a1b1c1d1e1f647461736b63722f3167766572646963746872656a656374656466726561736f6e646e6f726d666465746169"
        "6c68746f6f206c6f6e67"
    ),
    "Withdraw": "a600010109020303070419100005a2647461736b63722f3166726561736f6e66636c6f736564",
    "Unavailable": (
        "a60001010a020303070419100005a2666469676573745820000102030405060708090a0b0c0d0e0f10111213141516171819"
        "1a1b1c1d1e1f66726561736f6e64676f6e65"
    ),
    "CoordinatorState": "a60001010b020303070419100005a36565706f63680569616363657074696e67f56372756e6172",
    "DeviceState": "a60001010c020303070419100005a1657374617465657265616479",
    "Announcement": (
        "a60001010d020303070419100005a26776657273696f6e04656d6f64656ca266646967657374582000010203040506070809"
        "0a0b0c0d0e0f101112131415161718191a1b1c1d1e1f6473697a651a00011170"
    ),
    "Later": (
        "a60001010e020303070419100005a2666469676573745820000102030405060708090a0b0c0d0e0f10111213141516171819"
        "1a1b1c1d1e1f6761667465725f73fb4029000000000000"
    ),
    "Keyring": (
        "a60001010f020303070419100005a2656669727374026572696e677381584c00000000000000000000000000000000000000"
        "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
        "00000072696e67"
    ),
    "Membership": (
        "a600010110020303070419100005ab6372756e61726565706f6368026a6e65696768626f75727382a3666465766963656261"
        "6166776569676874fb3fd0000000000000686e6577636f6d6572f4a36664657669636562626266776569676874fb3fd00000"
        "00000000686e6577636f6d6572f565636f64656368616c6c2f7369676e6567616d6d61fb3fe0000000000000656166746572"
        "0c686e6577636f6d6572f4666566666f7274a26b6c6f63616c5f7374657073016d676f737369705f726f756e647301656265"
        "67756e0069616c676f726974686d6563686f636f6a70617469656e63655f73fb404e000000000000"
    ),
    "Effort": ("a600010111020303070419100005a26b6c6f63616c5f7374657073046d676f737369705f726f756e647302"),
    "Part": (
        "a600010112020303070419100005a76565706f636802666e756d6265720765706c61636500657061727473016473697a6503"
        "666469676573745820000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f646461746143000102"
    ),
    "Want": ("a600010113020303070419100005a36565706f636802666e756d6265720766706c61636573820003"),
    "Standing": (
        "a600010114020303070419100005a46565706f636802666e756d6265720668657374696d617465fb3fe00000000000006977"
        "616974735f666f7281626161"
    ),
}

EACH = pytest.mark.parametrize("name", SAMPLES)


def wire(name: str, **changes: Any) -> dict[int, Any]:
    """The decoded map of a sample, its body changed; None removes a field."""
    fields: dict[int, Any] = cbor2.loads(bytes.fromhex(GOLDEN[name]))
    body = fields[5] | changes
    return fields | {5: {k: v for k, v in body.items() if v is not ...}}


def refused(data: bytes, reason: str = "malformed") -> str:
    """Decodes what must be refused; returns the detail."""
    rejection = decode(data)
    assert isinstance(rejection, Rejection), rejection
    assert rejection.reason == reason
    assert len(rejection.detail) <= MAX_TEXT
    return rejection.detail


def test_there_is_a_sample_of_every_type() -> None:
    assert {type(body) for body in SAMPLES.values()} == set(TYPES.values())
    assert set(GOLDEN) == set(SAMPLES)


@EACH
def test_each_message_has_these_bytes(name: str) -> None:
    envelope = Envelope(3, 7, 4096, SAMPLES[name])
    assert encode(envelope).hex() == GOLDEN[name]
    assert decode(bytes.fromhex(GOLDEN[name])) == envelope


@given(envelopes)
def test_what_is_encoded_is_decoded(envelope: Envelope) -> None:
    data = encode(envelope)
    assert len(data) <= MAX_MESSAGE_BYTES
    assert decode(data) == envelope


def test_a_newer_peer_may_say_more_and_an_older_one_less() -> None:
    assert decode(cbor2.dumps(wire("Withdraw", urgency=3, more={"a": [1, 2]}))) == Envelope(
        3, 7, 4096, SAMPLES["Withdraw"]
    )
    assert decode(cbor2.dumps(wire("Withdraw") | {6: b"signature"})) == Envelope(3, 7, 4096, SAMPLES["Withdraw"])
    older = decode(cbor2.dumps(wire("TaskReport", reason=..., detail=...)))
    assert isinstance(older, Envelope)
    assert isinstance(older.body, TaskReport)
    assert (older.body.reason, older.body.detail) == ("", "")


def test_an_unknown_version_or_type_is_told_apart_from_nonsense() -> None:
    for version in (0, 2, True, 1.0, "1", None):
        refused(cbor2.dumps(wire("Hello") | {0: version}), "protocol")
    refused(cbor2.dumps([1, 2]), "protocol")
    for kind in (0, 99, True, 1.0, "Hello", None, 1 << 63, "x" * 5000):
        refused(cbor2.dumps(wire("Hello") | {1: kind}), "unknown-type")


@pytest.mark.parametrize("key", [2, 3, 4])
@pytest.mark.parametrize("value", [-1, 1 << 63, True, 1.0, "1", b"1", None, [1]], ids=repr)
def test_counters_are_unsigned_integers(key: int, value: object) -> None:
    refused(cbor2.dumps(wire("Hello") | {key: value}))


WRONG: tuple[object, ...] = (None, True, -1, 1.5, "text", b"bytes", [], ["a"], {}, {"a": 1}, (1 << 64) - 1)


@EACH
def test_a_field_of_the_wrong_type_is_refused_by_its_name_or_read_as_what_it_is(name: str) -> None:
    for field in wire(name)[5]:
        named = 0
        for value in WRONG:
            answer = decode(cbor2.dumps(wire(name, **{field: value})))
            if isinstance(answer, Rejection):
                assert field in answer.detail
                named += 1
            else:
                read = getattr(answer.body, field)
                if dataclasses.is_dataclass(read):
                    assert isinstance(value, dict)
                    continue
                if isinstance(read, tuple):
                    assert list(read) == value
                    continue
                assert read == (float(value) if isinstance(read, float) and isinstance(value, int) else value)
        assert named >= len(WRONG) - 4


@EACH
def test_a_field_that_is_missing_is_named(name: str) -> None:
    for field in wire(name)[5]:
        answer = decode(cbor2.dumps(wire(name, **{field: ...})))
        assert isinstance(answer, Envelope) or answer.detail == f"{name}: {field}: missing"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("Need", {"indices": []}),
        ("Need", {"indices": [0] * 9}),
        ("Need", {"indices": [-1]}),
        ("Need", {"indices": [MAX_CHUNKS]}),
        ("Need", {"digest": b"short"}),
        ("Chunk", {"data": b""}),
        ("Chunk", {"data": b"x" * 65537}),
        ("Chunk", {"digest": D + b"x"}),
        ("Task", {"learning_rate": float("nan")}),
        ("Task", {"learning_rate": float("inf")}),
        ("Task", {"local_steps": 1}),
        ("Task", {"local_epochs": 0}),
        ("Task", {"round": 0}),
        ("Task", {"batch_size": 0}),
        ("Task", {"model": {"digest": D, "size": -1}}),
        ("Task", {"model": {"digest": D, "size": (1 << 32) + 1}}),
        ("Task", {"optimizer": {"name": 7}}),
        ("Hello", {"skills": ["one"] * 65}),
        ("Hello", {"skills": ["x" * 101]}),
        ("Offer", {"held_out": {"examples": 0, "loss": 0.5}}),
        ("Offer", {"held_out": {"examples": 1 << 63, "loss": 0.5}}),
        ("Offer", {"held_out": {"examples": 9, "loss": 0.5, "accuracy": 1.5}}),
        ("Offer", {"held_out": {"examples": 9, "loss": 0.5, "accuracy": 0.5, "personal": 1.5, "mixed": 0.5}}),
        ("Offer", {"held_out": {"examples": 9, "loss": 0.5, "accuracy": 0.5, "personal": 0.5, "mixed": -0.1}}),
        ("Offer", {"base": b""}),
        ("Offer", {"blob": {"digest": b"", "size": 1}}),
        ("Offer", {"examples": 1 << 63}),
        ("Receipt", {"verdict": "maybe"}),
        ("Hello", {"agent": "x" * (MAX_TEXT + 1)}),
    ],
    ids=lambda v: v if isinstance(v, str) else repr(v)[:40],
)
def test_a_value_out_of_range_is_refused_by_the_fields_name(name: str, change: dict[str, object]) -> None:
    assert next(iter(change)) in refused(cbor2.dumps(wire(name, **change)))


def test_an_offer_of_a_peer_that_knows_no_variants_is_one_of_the_full_model() -> None:
    read = decode(cbor2.dumps(wire("Offer", variant=...)))
    assert isinstance(read, Envelope)
    assert isinstance(read.body, Offer)
    assert read.body.variant == "full"


def test_a_detail_that_is_too_long_is_cut_and_not_refused_by_the_other_side() -> None:
    decoded = decode(encode(Envelope(1, 1, 1, TaskReport("r/1", "failed", detail="ü" * (3 * MAX_TEXT)))))
    assert isinstance(decoded, Envelope)
    assert isinstance(decoded.body, TaskReport)
    assert decoded.body.detail == "ü" * MAX_TEXT


@given(st.binary(max_size=200))
@settings(max_examples=1000)
def test_random_bytes_are_refused(data: bytes) -> None:
    assert isinstance(decode(data), Rejection)


@given(st.binary(max_size=60), st.sampled_from(sorted(TYPES)))
@settings(max_examples=1000)
def test_random_bytes_in_an_envelope_are_a_message_or_refused(data: bytes, kind: int) -> None:
    head = bytes.fromhex("a6000101") + cbor2.dumps(kind) + bytes.fromhex("02030307041905") + b"\x00\x05"
    assert isinstance(decode(head + data), Envelope | Rejection)


json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 64), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(0, 9), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.integers(0, 6), json_like), st.sampled_from(sorted(TYPES)))
def test_any_structure_is_a_message_or_refused(fields: dict[int, Any], kind: int) -> None:
    assert isinstance(decode(cbor2.dumps({0: 1, 2: 0, 3: 0, 4: 0, 1: kind, **fields})), Envelope | Rejection)


SINCE: dict[str, tuple[Body, str]] = {
    "Hello": (
        Hello("0.1.0", "portable", "r/1", 2, 512, 0x7B1E5),
        (
            "a600010101020303070419100005a6656167656e7465302e312e30676261636b656e6468706f727461626c6564"
            "7461736b63722f31666f7574626f78026a6d656d6f72795f6d696219020068696e7374616e63651a0007b1e5"
        ),
    ),
    "Welcome": (
        Welcome("r", 1.5, TWO_AGENTS),
        (
            "a600010102020303070419100005a36372756e61726674696d655f73fb3ff8000000000000677761726e696e67"
            "6a74776f2d6167656e7473"
        ),
    ),
    "CoordinatorState": (
        CoordinatorState(5, True, "r", 0x7B1E5, 12.5, 1.5),
        (
            "a60001010b020303070419100005a66565706f63680569616363657074696e67f56372756e617268696e737461"
            "6e63651a0007b1e5687370726561645f73fb40290000000000006973657276696e675f73fb3ff8000000000000"
        ),
    ),
}


@pytest.mark.parametrize("name", SINCE)
def test_fields_that_came_later_have_these_bytes_and_an_older_reader_skips_them(name: str) -> None:
    body, golden = SINCE[name]
    assert encode(Envelope(3, 7, 4096, body)).hex() == golden
    assert decode(bytes.fromhex(golden)) == Envelope(3, 7, 4096, body)
    older: dict[str, Any] = cbor2.loads(bytes.fromhex(GOLDEN[name]))[5]
    said: dict[str, Any] = cbor2.loads(bytes.fromhex(golden))[5]
    assert {key: said[key] for key in older} == older


@pytest.mark.parametrize("wait_s", [-1.0, 3601.0, float("nan"), float("inf")])
def test_nobody_is_asked_to_wait_for_ever(wait_s: float) -> None:
    assert "outside 0..3600 seconds" in refused(cbor2.dumps(wire("Later", after_s=wait_s)))
    assert "outside 0..3600 seconds" in refused(cbor2.dumps(wire("CoordinatorState", spread_s=wait_s)))


def test_a_peer_that_does_not_know_a_type_says_so_and_nothing_else() -> None:
    unknown = wire("Later") | {1: max(TYPES) + 1}
    assert "is not known to this version" in refused(cbor2.dumps(unknown), "unknown-type")


@EACH
def test_every_truncation_and_anything_appended_is_refused(name: str) -> None:
    data = bytes.fromhex(GOLDEN[name])
    for end in range(len(data)):
        refused(data[:end])
    refused(data + b"\x00")


@EACH
def test_every_flipped_bit_and_every_other_byte_is_a_message_or_refused(name: str) -> None:
    data = bytes.fromhex(GOLDEN[name])
    pick = random.Random(0)
    for at in range(len(data)):
        for value in {data[at] ^ 1 << bit for bit in range(8)} | {0x00, 0xFF, pick.randrange(256)}:
            altered = data[:at] + bytes([value]) + data[at + 1 :]
            assert isinstance(decode(altered), Envelope | Rejection)


def test_a_message_over_the_limit_is_not_even_read() -> None:
    refused(b"\xa6" * (MAX_MESSAGE_BYTES + 1), "frame-too-large")


BOMBS = {
    "arrays in arrays": b"\x81" * MAX_MESSAGE_BYTES,
    "maps in maps": b"\xa1\x00" * (MAX_MESSAGE_BYTES // 2),
    "maps in keys": b"\xa1" * MAX_MESSAGE_BYTES,
    "tags in tags": b"\xc6" * MAX_MESSAGE_BYTES,
    "a text of 2^63 bytes": b"\x7b" + struct.pack(">Q", 1 << 63),
    "bytes of 2^32": b"\x5a\xff\xff\xff\xff" + b"x" * 60000,
    "an array of 2^64": b"\x9b" + b"\xff" * 8 + b"\x00" * 60000,
    "a map of 2^40": b"\xbb" + struct.pack(">Q", 1 << 40) + b"\x00" * 60000,
    "60 000 nothings": b"\x99" + struct.pack(">H", 60000) + b"\xf6" * 60000,
    "an array without end": b"\x9f" + b"\x00" * 60000,
    "a text without end": b"\x7f" + b"\x61a" * 30000,
    "a big number": b"\xc2\x59\xff\x00" + b"\xff" * 0xFF00,
    "a power of two": b"\xc5\x82\x1b\x00\xff\xff\xff\xff\xff\xff\xff\x01",
    "a fraction over nothing": b"\xd8\x1e\x82\x01\x00",
    "a regular expression": b"\xd8\x23\x78\x1e" + b"(" * 30,
    "a mail": b"\xd8\x24\x61\x00",
    "a cycle": b"\xd8\x1c\x81\xd8\x1d\x00",
    "undefined": b"\xf7",
    "a break": b"\xff",
    "text that is none": b"\xa1\x00\x62\xff\xfe",
    "nothing": b"",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_at_little_cost(bomb: str) -> None:
    inside = bytes.fromhex("a600010101020303070419100005") + BOMBS[bomb]
    refused(b"\xf7")
    tracemalloc.start()
    refused(BOMBS[bomb][:MAX_MESSAGE_BYTES])
    refused(inside[:MAX_MESSAGE_BYTES])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * MAX_MESSAGE_BYTES


def nested(levels: int) -> bytes:
    return b"\x81" * levels + b"\x00"


@pytest.mark.parametrize(
    ("data", "good"),
    [
        (nested(MAX_DEPTH), True),
        (nested(MAX_DEPTH + 1), False),
        (cbor2.dumps([None] * (MAX_ITEMS - 1)), True),
        (cbor2.dumps([None] * MAX_ITEMS), False),
        (cbor2.dumps({"a": 1, 2: b"x", "z": [True, False, None, 1.5, -(1 << 64), (1 << 64) - 1]}), True),
        (b"\xf9\x3c\x00", True),
        (b"\xa1\x81\x00\x00", False),
        (b"\xa1\x40\x00", False),
        (b"\xa1\x20\x00", False),
        (b"\xa1\xf5\x00", False),
        (b"\x1c", False),
        (b"\xf8\x20", False),
        (b"\xe0", False),
        (b"\x19\x00", False),
    ],
    ids=lambda v: repr(v)[:30],
)
def test_the_part_of_cbor_that_is_read_is_this(data: bytes, good: bool) -> None:
    assert (flaw(data) is None) == good


@given(st.binary(max_size=40))
@settings(max_examples=500)
def test_what_passes_the_check_is_cbor_but_for_its_texts(data: bytes) -> None:
    if flaw(data) is None:
        cbor2.loads(data, str_errors="replace")


@given(json_like)
def test_whatever_our_encoder_writes_of_plain_values_passes_the_check(value: object) -> None:
    assert flaw(cbor2.dumps(value)) in (None, f"over {MAX_ITEMS} items or {MAX_DEPTH} levels")
