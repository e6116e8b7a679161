"""One message of each type, and strategies for all of them."""

from typing import Any

from hypothesis import strategies as st

from protocol.envelope import Envelope
from protocol.gossip import Effort, Membership, Neighbour, Part, Standing, Want
from protocol.keyring import Keyring
from protocol.messages import (
    CHUNK_BYTES,
    MAX_BLOB_BYTES,
    MAX_CHUNKS,
    MAX_WAIT_S,
    WINDOW,
    Announcement,
    BlobRef,
    Body,
    Chunk,
    CoordinatorState,
    DeviceState,
    Difference,
    Hello,
    Later,
    Need,
    Offer,
    OptimizerSpec,
    Receipt,
    Task,
    TaskReport,
    Unavailable,
    Welcome,
    Withdraw,
)

D = bytes(range(32))

SAMPLES: dict[str, Body] = {
    "Hello": Hello("0.1.0", "portable", "r/1", 2),
    "Welcome": Welcome("r", 1.5),
    "Task": Task("r", 1, BlobRef(D, 900), BlobRef(D, 70000), 4, 0, 1, 32, 0.05, OptimizerSpec(), "topk", 9, 60.0),
    "TaskReport": TaskReport("r/1", "refused", 10, "portable", "memory", "too large"),
    "Offer": Offer(BlobRef(D, 1), "r", 1, 3, 6, D, 10, 20, 0.25, 1.5, "topk", "head"),
    "Need": Need(D, (0, 1, 65535)),
    "Chunk": Chunk(D, 1, b"\x00\xff"),
    "Receipt": Receipt(D, "r/1", "rejected", "norm", "too long"),
    "Withdraw": Withdraw("r/1", "closed"),
    "Unavailable": Unavailable(D, "gone"),
    "CoordinatorState": CoordinatorState(5, True, "r"),
    "DeviceState": DeviceState("ready"),
    "Later": Later(D, 12.5),
    "Announcement": Announcement(4, BlobRef(D, 70000)),
    "Keyring": Keyring(2, (bytes(72) + b"ring",)),
    "Membership": Membership("r", 2, (Neighbour("aa", 0.25), Neighbour("bb", 0.25, True)), "all/sign", 0.5, 12),
    "Effort": Effort(4, 2),
    "Part": Part(2, 7, 0, 1, 3, D, b"\x00\x01\x02"),
    "Want": Want(2, 7, (0, 3)),
    "Standing": Standing(2, 6, 0.5, ("aa",)),
}

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_integer = st.integers(-(1 << 63), (1 << 63) - 1)
_natural = st.integers(0, (1 << 63) - 1)
_digest = st.binary(min_size=32, max_size=32)
_float = st.floats(allow_nan=False)
_blob = st.builds(BlobRef, _digest, st.integers(0, MAX_BLOB_BYTES))
_optimizer = st.builds(
    OptimizerSpec, st.sampled_from(["sgd", "adamw"]), _float, st.booleans(), _float, _float, _float, _float, _float
)


def _task(by_steps: bool, amount: int, **rest: Any) -> Task:
    return Task(local_steps=amount if by_steps else 0, local_epochs=0 if by_steps else amount, **rest)


bodies: st.SearchStrategy[Body] = st.one_of(
    st.builds(Hello, _text, _text, st.none() | _text, _integer),
    st.builds(Welcome, _text, _float),
    st.builds(
        _task,
        st.booleans(),
        st.integers(1, 1 << 40),
        run=_text,
        round=st.integers(1, 1 << 40),
        manifest=_blob,
        model=_blob,
        version=_integer,
        batch_size=st.integers(1, 1 << 40),
        learning_rate=st.floats(0, exclude_min=True, allow_infinity=False),
        optimizer=_optimizer,
        codec=_text,
        seed=_integer,
        time_left_s=_float,
        differences=st.lists(st.builds(Difference, _digest, _blob), max_size=3).map(tuple),
    ),
    st.builds(
        *(TaskReport, _text, st.sampled_from(["accepted", "refused", "failed"])),
        *(_integer, _text, _text, _text, st.none() | _integer),
    ),
    st.builds(Offer, _blob, _text, _integer, _integer, _integer, _digest, _integer, _integer, _float, _float, _text),
    st.builds(Need, _digest, st.lists(st.integers(0, MAX_CHUNKS - 1), min_size=1, max_size=WINDOW).map(tuple)),
    st.builds(Chunk, _digest, _integer, st.binary(min_size=1, max_size=300)),
    st.builds(Chunk, _digest, _integer, st.just(b"\xa5" * CHUNK_BYTES)),
    st.builds(Receipt, _digest, _text, st.sampled_from(["accepted", "rejected"]), _text, _text),
    st.builds(Withdraw, _text, _text),
    st.builds(Unavailable, _digest, _text),
    st.builds(
        CoordinatorState, _integer, st.booleans(), _text, st.none() | _integer, st.none() | st.floats(0.0, MAX_WAIT_S)
    ),
    st.builds(Later, _digest, st.floats(0.0, MAX_WAIT_S)),
    st.builds(DeviceState, st.sampled_from(["ready", "gone", "lost"])),
    st.builds(Announcement, _integer, _blob),
    st.builds(Keyring, _integer, st.lists(st.binary(max_size=200), min_size=1, max_size=16).map(tuple)),
)
envelopes = st.builds(Envelope, _natural, _natural, _natural, bodies)
