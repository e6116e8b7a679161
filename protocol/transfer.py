"""How a blob moves, both directions alike, as a pure table: offer, need, chunk, and at the end a receipt.

The receiver asks and the sender only answers, so the receiver's window bounds what lies in the broker, a restart of
either side costs at most one window, and the sender keeps no state at all: a Need names the chunks, the sender reads
them. What a receiver holds is a bitmap; from (state, event) this table gives the next state and what to do.
"""

from dataclasses import dataclass, replace

from protocol.errors import Rejection
from protocol.messages import CHUNK_BYTES, WINDOW, BlobRef, Chunk, Need

# How long a receiver waits for a chunk it asked for before it asks again; doubled at each silence up to the limit.
FIRST_PATIENCE_S = 2.0
LONGEST_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Receiving:
    """The receiving end of one transfer. `have` and `asked` are bitmaps over chunk numbers (bit i, chunk i)."""

    blob: BlobRef
    have: int = 0
    asked: int = 0
    ask_again_at: float = 0.0
    patience_s: float = FIRST_PATIENCE_S

    @property
    def complete(self) -> bool:
        return self.have.bit_count() == self.blob.chunks


def ask(state: Receiving, now: float) -> tuple[Receiving, Need | None]:
    """Asks for the next chunks when at most half a window is outstanding, so that the link never runs dry.

    All outstanding chunks are asked for again once `ask_again_at` has passed in silence.
    """
    if state.complete:
        return state, None
    if state.asked and now >= state.ask_again_at:
        longer = min(state.patience_s * 2, LONGEST_PATIENCE_S)
        state = replace(state, asked=0, patience_s=longer)
    outstanding = state.asked.bit_count()
    if outstanding > WINDOW // 2:
        return state, None
    missing = ~(state.have | state.asked) & ((1 << state.blob.chunks) - 1)
    indices: list[int] = []
    while missing and len(indices) < WINDOW - outstanding:
        lowest = missing & -missing
        indices.append(lowest.bit_length() - 1)
        missing ^= lowest
    if not indices:
        return state, None
    asked = state.asked | sum(1 << i for i in indices)
    state = replace(state, asked=asked, ask_again_at=now + state.patience_s)
    return state, Need(state.blob.digest, tuple(indices))


def receive(state: Receiving, chunk: Chunk, now: float) -> tuple[Receiving, bool] | Rejection:
    """Takes a chunk in; True when its bytes are new and must be written. A chunk that cannot be is refused."""
    if chunk.digest != state.blob.digest or not 0 <= chunk.index < state.blob.chunks:
        return Rejection("chunk", f"chunk {chunk.index} is not part of this transfer")
    want = chunk_length(state.blob, chunk.index)
    if len(chunk.data) != want:
        return Rejection("chunk", f"chunk {chunk.index} has {len(chunk.data)} bytes where {want} are due")
    bit = 1 << chunk.index
    new = not state.have & bit
    return (
        replace(
            state,
            have=state.have | bit,
            asked=state.asked & ~bit,
            ask_again_at=now + FIRST_PATIENCE_S,
            patience_s=FIRST_PATIENCE_S,
        ),
        new,
    )


def forget(state: Receiving) -> Receiving:
    """After a broken connection: nothing asked for will come, everything received stays."""
    return replace(state, asked=0, patience_s=FIRST_PATIENCE_S)


def chunk_length(blob: BlobRef, index: int) -> int:
    """How many bytes chunk `index` of this blob has."""
    return min(CHUNK_BYTES, blob.size - index * CHUNK_BYTES)
