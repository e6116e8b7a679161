"""The transfer table: whatever the link does, every chunk is written once and the window is never exceeded."""

import heapq
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import Rejection
from protocol.messages import CHUNK_BYTES, WINDOW, BlobRef, Chunk, Need
from protocol.transfer import (
    FIRST_PATIENCE_S,
    LONGEST_PATIENCE_S,
    Receiving,
    ask,
    chunk_length,
    forget,
    receive,
)

D = bytes(32)
BYTES = bytes(CHUNK_BYTES)


def chunk(blob: BlobRef, index: int) -> Chunk:
    return Chunk(blob.digest, index, BYTES[: chunk_length(blob, index)])


def take(state: Receiving, index: int, now: float = 0.0) -> tuple[Receiving, bool]:
    """A chunk that must be taken."""
    answer = receive(state, chunk(state.blob, index), now)
    assert not isinstance(answer, Rejection), answer
    return answer


sizes = st.builds(
    lambda chunks, rest: chunks * CHUNK_BYTES + rest, st.integers(0, 30), st.sampled_from([0, 1, 7, CHUNK_BYTES - 1])
)


@settings(max_examples=400)
@given(
    size=sizes,
    seed=st.integers(0, 1 << 32),
    loss=st.floats(0, 0.7),
    duplicates=st.floats(0, 0.7),
    delay_s=st.sampled_from([0.0, 0.1, 1.5, 5.0, 30.0]),
    cuts=st.lists(st.integers(0, 300), max_size=4),
)
def test_over_any_link_it_completes_and_writes_each_chunk_once(
    size: int, seed: int, loss: float, duplicates: float, delay_s: float, cuts: list[int]
) -> None:
    """Messages both ways are lost, doubled, delayed past the receiver's patience and so shuffled; the link is cut."""
    rng, count = np.random.default_rng(seed), itertools.count()
    state = Receiving(BlobRef(D, size))
    written: list[int] = []
    link: list[tuple[float, int, Need | Chunk]] = []
    now = 0.0

    def send(message: Need | Chunk) -> None:
        for _ in range(0 if rng.random() < loss else 2 if rng.random() < duplicates else 1):
            heapq.heappush(link, (now + rng.uniform(0, delay_s), next(count), message))

    for step in range(200_000):
        if state.complete:
            break
        if step in cuts:
            link.clear()
            state = forget(state)
        state, need = ask(state, now)
        assert state.asked.bit_count() <= WINDOW
        assert not state.asked & state.have
        if need is not None:
            send(need)
        if not link:
            now = max(now, state.ask_again_at)
            continue
        arrives, _, message = heapq.heappop(link)
        if arrives > state.ask_again_at > now:
            heapq.heappush(link, (arrives, next(count), message))
            now = state.ask_again_at
            continue
        now = max(now, arrives)
        if isinstance(message, Need):
            for index in message.indices:
                send(chunk(state.blob, index))
        else:
            answer = receive(state, message, now)
            assert not isinstance(answer, Rejection)
            state, new = answer
            if new:
                written.append(message.index)
    assert state.complete
    assert sorted(written) == list(range(state.blob.chunks))
    assert ask(state, now) == (state, None)


def test_a_link_without_loss_needs_each_chunk_once_and_never_runs_dry() -> None:
    state = Receiving(BlobRef(D, 100 * CHUNK_BYTES))
    asked: list[int] = []
    on_the_way: list[int] = []
    while not state.complete:
        state, need = ask(state, 0.0)
        if need is not None:
            on_the_way += need.indices
            asked += need.indices
        assert len(on_the_way) >= min(WINDOW // 2, 100 - state.have.bit_count())
        state, new = take(state, on_the_way.pop(0))
        assert new
    assert asked == list(range(100))


def test_in_silence_it_asks_again_for_the_same_with_growing_patience_up_to_a_limit() -> None:
    state, now, pauses = Receiving(BlobRef(D, 3 * CHUNK_BYTES)), 0.0, []
    for _ in range(8):
        state, need = ask(state, now)
        assert need == Need(D, (0, 1, 2))
        assert ask(state, state.ask_again_at - 0.001) == (state, None)
        pauses.append(state.ask_again_at - now)
        now = state.ask_again_at
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60]
    assert (pauses[0], pauses[-1]) == (FIRST_PATIENCE_S, LONGEST_PATIENCE_S)
    state, _ = take(state, 1, now)
    assert state.patience_s == FIRST_PATIENCE_S
    state, need = ask(state, state.ask_again_at)
    assert need == Need(D, (0, 2))


def test_after_a_broken_connection_it_asks_at_once_for_what_is_missing() -> None:
    state, _ = ask(Receiving(BlobRef(D, 20 * CHUNK_BYTES)), 0.0)
    for index in (0, 2):
        state, _ = take(state, index)
    state, need = ask(forget(state), 0.1)
    assert need == Need(D, (1, 3, 4, 5, 6, 7, 8, 9))


def test_a_chunk_that_comes_twice_or_unasked_for_is_written_once() -> None:
    state = Receiving(BlobRef(D, 3 * CHUNK_BYTES))
    state, new = take(state, 2)
    assert new
    state, new = take(state, 2)
    assert not new
    assert state.have == 0b100


@pytest.mark.parametrize(
    "wrong",
    [
        Chunk(bytes([1]) * 32, 0, BYTES),
        Chunk(D, 2, BYTES),
        Chunk(D, -1, BYTES),
        Chunk(D, 1 << 62, BYTES),
        Chunk(D, 0, BYTES[:-1]),
        Chunk(D, 1, BYTES),
        Chunk(D, 1, BYTES[:4]),
    ],
    ids=["other blob", "behind the end", "negative", "huge", "short", "long last", "short last"],
)
def test_a_chunk_that_cannot_be_is_refused_and_changes_nothing(wrong: Chunk) -> None:
    answer = receive(Receiving(BlobRef(D, CHUNK_BYTES + 5)), wrong, 0.0)
    assert isinstance(answer, Rejection)
    assert answer.reason == "chunk"


def test_an_empty_blob_is_complete_from_the_start() -> None:
    assert Receiving(BlobRef(D, 0)).complete
    assert ask(Receiving(BlobRef(D, 0)), 0.0)[1] is None


@given(sizes)
def test_chunks_cover_the_blob(size: int) -> None:
    blob = BlobRef(D, size)
    assert sum(chunk_length(blob, i) for i in range(blob.chunks)) == size
    assert all(0 < chunk_length(blob, i) <= CHUNK_BYTES for i in range(blob.chunks))
