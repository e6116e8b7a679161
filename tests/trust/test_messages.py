"""What is said at enrolment, in bytes: read back exactly, and anything else is a value, never an error."""

import socket
import time

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.enrolment import (
    MAX_FRAME,
    AskRoots,
    Enrol,
    Issued,
    Message,
    Refused,
    Renew,
    Roots,
    decode,
    encode,
    receive,
)
from protocol.errors import Rejection

SAMPLES: tuple[Message, ...] = (
    AskRoots(),
    Enrol("kitchen-pi", bytes(16), b"request"),
    Renew(b"request"),
    Roots((b"one", b"two")),
    Issued(b"certificate", (b"root",), "home", "mqtts://:8883", 1.0, 2.0),
    Refused("token", "there is no such token"),
)


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: type(m).__name__)
def test_a_message_is_read_back(message: Message) -> None:
    frame = encode(message)
    assert int.from_bytes(frame[:4]) == len(frame) - 4
    assert decode(frame[4:]) == message


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_a_rejection(data: bytes) -> None:
    assert isinstance(decode(data), Message | Rejection)


@given(st.sampled_from(SAMPLES), st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 10_000))
def test_a_message_with_wrong_bytes_is_a_message_or_a_rejection(message: Message, at: int, byte: int, cut: int) -> None:
    body = bytearray(encode(message)[4:])
    body[at % len(body)] = byte
    assert isinstance(decode(bytes(body[: 1 + cut % len(body)])), Message | Rejection)


def test_a_rejection_quotes_nothing_of_what_it_refuses() -> None:
    said = {"kind": "enrol", "device": "kitchen-pi", "secret": b"fifteen secrets", "request": b"request"}
    for wrong in (said, said | {"secret": "fifteen secrets"}, {"kind": "fifteen secrets"}):
        rejection = decode(cbor2.dumps(wrong))
        assert isinstance(rejection, Rejection)
        assert "secret" not in str(rejection)


def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    assert decode(bytes(MAX_FRAME + 1)) == Rejection(
        "too-large", f"{MAX_FRAME + 1} bytes are over the limit of {MAX_FRAME}"
    )


def test_a_frame_that_comes_in_drips_has_one_deadline_for_all_of_it() -> None:
    ours, theirs = socket.socketpair()
    clock = iter(range(100))
    with ours, theirs:
        theirs.sendall(encode(Refused("x" * 40, ""))[:30])
        with pytest.raises(TimeoutError):
            receive(ours, 0.3 + 2, lambda: float(next(clock)))


def test_a_frame_that_announces_too_much_is_not_waited_for() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((MAX_FRAME + 1).to_bytes(4))
        with pytest.raises(ValueError, match="over the limit"):
            receive(ours, time.monotonic() + 10)
