"""Payloads in parts and back, and what no message of gossip may claim."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.envelope import Envelope, decode, encode
from protocol.gossip import MAX_WANTED, PART_BYTES, Collected, Membership, Neighbour, Part, Standing, Want, parts
from protocol.messages import MAX_MESSAGE_BYTES
from protocol.sealed import SEALED_BYTES
from protocol.topics import Topics
from protocol.transport import matches

TOPICS = Topics("hall")


def collected(all_parts: list[Part], order: list[int]) -> bytes | None:
    begun = Collected.begun(all_parts[0])
    for i in order:
        found = begun.add(all_parts[i])
        if found is not None:
            return found
    return None


@settings(deadline=None, derandomize=True, max_examples=20)
@given(st.integers(1, 3 * PART_BYTES), st.randoms(use_true_random=False))
def test_parts_make_the_payload_in_any_order_and_however_often_they_come(size: int, random: object) -> None:
    payload = np.random.default_rng(size).bytes(size)
    made = list(parts(1, 2, payload))
    order = [*range(len(made))] * 2
    random.shuffle(order)  # type: ignore[attr-defined]
    assert collected(made, order) == payload
    assert collected(made, order[:1] * 5) == (payload if len(made) == 1 else None)


def test_the_largest_part_with_its_envelope_and_seal_is_a_message() -> None:
    part = next(parts(1 << 32, 1 << 32, bytes(PART_BYTES)))
    assert len(encode(Envelope((1 << 63) - 1, (1 << 63) - 1, (1 << 63) - 1, part))) + SEALED_BYTES < MAX_MESSAGE_BYTES


def test_what_is_missing_is_asked_for_so_many_at_a_time() -> None:
    made = list(parts(1, 0, bytes(100 * PART_BYTES)))
    begun = Collected.begun(made[3])
    begun.add(made[3])
    assert begun.missing == tuple(i for i in range(MAX_WANTED + 1) if i != 3)
    assert [part.place for part in parts(1, 0, bytes(100 * PART_BYTES), (7, 9, 1000))] == [7, 9]


def test_parts_that_are_not_what_the_digest_says_are_gathered_again() -> None:
    made = list(parts(1, 2, bytes(2 * PART_BYTES)))
    forged = Part(1, 2, 1, 2, 2 * PART_BYTES, made[0].digest, b"x" * PART_BYTES)
    begun = Collected.begun(made[0])
    assert begun.add(made[0]) is None
    assert begun.add(forged) is None
    assert begun.missing == (0, 1)
    assert begun.add(made[0]) is None
    assert begun.add(made[1]) == bytes(2 * PART_BYTES)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Part(1, 1, 1, 1, 5, bytes(32), b"12345"),
        lambda: Part(1, 1, 0, 2, 5, bytes(32), b"12345"),
        lambda: Part(1, 1, 0, 1, 5, bytes(32), b"123"),
        lambda: Part(1, 1, 0, 1 << 20, 1 << 40, bytes(32), bytes(PART_BYTES)),
        lambda: Want(1, 1, tuple(range(MAX_WANTED + 1))),
        lambda: Standing(1, 1, float("nan")),
        lambda: Standing(1, 1, float("inf")),
        lambda: Neighbour("aa", 1.0),
        lambda: Membership("r", 1, (Neighbour("aa", 0.7), Neighbour("bb", 0.7)), "all/sign", 0.5),
        lambda: Membership("r", 1, (Neighbour("aa", 0.2), Neighbour("aa", 0.2)), "all/sign", 0.5),
        lambda: Membership("r", 1, (), "all/sign", 2.0),
    ],
)
def test_a_message_that_claims_what_cannot_be_is_none(wrong: object) -> None:
    with pytest.raises(ValueError, match=": "):
        wrong()  # type: ignore[operator]


def test_a_membership_with_as_many_neighbours_as_there_may_be_is_a_message() -> None:
    many = tuple(Neighbour(f"device-{i:04d}", 1 / 257) for i in range(256))
    said = Envelope(1, 2, 3, Membership("r", 1, many, "all/sign", 0.5))
    assert decode(encode(said)) == said


def test_a_device_hears_gossip_and_what_it_is_asked_for_and_knows_who_speaks() -> None:
    filters = TOPICS.of_gossip("aa")
    assert any(matches(f, TOPICS.gossip("bb")) for f in filters)
    assert any(matches(f, TOPICS.want("bb", "aa")) for f in filters)
    assert not any(matches(f, TOPICS.want("bb", "cc")) for f in filters)
    assert TOPICS.parse_gossip(TOPICS.gossip("bb"), "aa") == "bb"
    assert TOPICS.parse_gossip(TOPICS.want("bb", "aa"), "aa") == "bb"
    for other in (TOPICS.want("bb", "cc"), TOPICS.device("bb", "up"), "sf/1/away/bb/gossip", "sf/1/hall/all/gossip"):
        assert TOPICS.parse_gossip(other, "aa") is None
    assert TOPICS.parse(TOPICS.gossip("bb")) is None
