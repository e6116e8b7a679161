"""The one blob that is on its way to this device, by the chunk; where it stands is on disk for a restart to go on."""

from edge_agent.link import Link
from edge_agent.repeats import NEVER
from protocol.blobs import BlobStore
from protocol.errors import Rejection
from protocol.failpoints import reached
from protocol.messages import BlobRef, Chunk
from protocol.transfer import Receiving, ask, forget, receive


class Download:
    """Asks for the chunks of a blob, and writes each as it comes."""

    def __init__(self, blobs: BlobStore, link: Link) -> None:
        self._blobs, self._link = blobs, link
        self._receiving: Receiving | None = None

    @property
    def idle(self) -> bool:
        """Nothing is on its way."""
        return self._receiving is None

    @property
    def due(self) -> float:
        """When to ask again."""
        return NEVER if self._receiving is None else self._receiving.ask_again_at

    def is_of(self, digest: bytes) -> bool:
        return self._receiving is not None and self._receiving.blob.digest == digest

    def begin(self, blob: BlobRef) -> bool:
        """Goes on where a blob was left; True where all of it is here."""
        self._receiving = self._blobs.resume(blob)
        return self._receiving.complete

    def ask(self, now: float) -> None:
        """Asks for what is due, once there is a connection."""
        assert self._receiving is not None
        self._receiving, need = ask(self._receiving, now)
        if need is not None:
            self._blobs.checkpoint(self._receiving)
            reached("agent.transfer-checkpointed")
            self._link.send("up", need)

    def take(self, chunk: Chunk, now: float) -> Rejection | None:
        """Writes a chunk that was asked for; why it is none of those, if so."""
        if self._receiving is None:
            return None
        outcome = receive(self._receiving, chunk, now)
        if isinstance(outcome, Rejection):
            return outcome
        receiving, new = outcome
        if new:
            # First: a disk that does not take it leaves it to be asked for again.
            self._blobs.write_chunk(receiving.blob, chunk.index, chunk.data)
            reached("agent.chunk-written")
        self._receiving = receiving
        return None

    def finish(self) -> BlobRef | None:
        """Puts a blob in its place if all of it is here. Returns one that was not what its digest says, and is gone."""
        if self._receiving is None or not self._receiving.complete:
            return None
        blob, self._receiving = self._receiving.blob, None
        whole = self._blobs.finish(blob)
        reached("agent.blob-finished")
        return None if whole else blob

    def forget(self) -> None:
        """Of what was asked for nothing will come: the other side, or the way to it, is a new one."""
        if self._receiving is not None:
            self._receiving = forget(self._receiving)

    def drop(self) -> None:
        """Nothing is wanted any more."""
        self._receiving = None
