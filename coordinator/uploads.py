"""Updates on their way in: one transfer a device, its chunks on disk, its state in memory, so many at once."""

from collections.abc import Container
from dataclasses import dataclass

from coordinator.link import Link
from coordinator.turns import Turns
from protocol.blobs import BlobStore
from protocol.errors import Rejection
from protocol.failpoints import reached
from protocol.messages import WINDOW, BlobRef, Chunk, Later, Offer
from protocol.transfer import FIRST_PATIENCE_S, Receiving, ask, forget, receive

NEVER = float("inf")


@dataclass(slots=True)
class Upload:
    """The offer that is being fetched, and how far."""

    offer: Offer
    state: Receiving
    begun_at: float
    unsynced: int = 0


class Uploads:
    """Asks for chunks and writes them; says when a blob is complete. Its digest is checked by whoever takes it.

    most: how many transfers go on at once; the others wait their turn. bytes_per_s: at which each device's last update
    came, from the first request to the last chunk.
    """

    def __init__(self, blobs: BlobStore, link: Link, most: int) -> None:
        self._blobs, self._link, self._turns = blobs, link, Turns(most)
        self._of: dict[str, Upload] = {}
        self._verified: dict[bytes, BlobRef] = {}
        self._behind: set[str] = set()
        # Nothing has to be asked for again before this, whatever the single transfers say.
        self._look_at = NEVER
        self.bytes_per_s: dict[str, float] = {}

    def begin(self, device: str, offer: Offer, now: float) -> Offer | None:
        """Starts or goes on with a transfer, or says that it must wait; the offer itself when nothing is missing."""
        upload = self._of.get(device)
        if upload is None or upload.offer != offer:
            upload = self._of[device] = Upload(offer, self._blobs.resume(offer.blob), now)
        if self._blobs.has(offer.blob.digest):
            return offer
        if not self._turns.take(device):
            # Somebody waits now: whoever does not use its turn is to be found at once.
            self._look_at = now
            self._link.send(device, Later(offer.blob.digest, self._turns.wait_s(device)))
        return self._go_on(device, upload, now)

    def take(self, device: str, chunk: Chunk, now: float) -> Offer | Rejection | None:
        """Takes a chunk in; the offer when it was the last one missing. One that nobody asked for is refused."""
        upload = self._of.get(device)
        if upload is None or chunk.digest != upload.offer.blob.digest:
            # Chunks asked for twice, or for a round that closed meanwhile: no harm, no news.
            return None
        outcome = receive(upload.state, chunk, now)
        if isinstance(outcome, Rejection):
            return outcome
        upload.state, new = outcome
        if new and not self._whole(chunk.digest):
            self._blobs.write_chunk(upload.offer.blob, chunk.index, chunk.data)
            reached("coordinator.chunk-written")
            upload.unsynced += 1
            if upload.unsynced >= WINDOW:
                self._behind.add(device)
        if upload.state.complete and now > upload.begun_at:
            self.bytes_per_s[device] = upload.offer.blob.size / (now - upload.begun_at)
        return self._go_on(device, upload, now)

    def ask_again(self, now: float) -> float:
        """Asks those whose turn has come, and for what did not come in time; says when to look again."""
        for device in self._turns.next(now):
            self._go_on(device, self._of[device], now)
        # Each transfer is looked at only when one may be due: there are many, and what arrives only puts them off.
        if now >= self._look_at:
            self._look_at = NEVER
            for device, upload in tuple(self._of.items()):
                if self._turns.has(device) and not upload.state.complete:
                    self._wait_no_longer(device, upload, now)
        return self._look_at

    def _wait_no_longer(self, device: str, upload: Upload, now: float) -> None:
        """Asks again where it is time to. Who was silent twice lets the next one send, where somebody waits."""
        asked_once = upload.state.patience_s <= FIRST_PATIENCE_S
        asked_twice = upload.state.patience_s <= 2 * FIRST_PATIENCE_S
        silent = not asked_twice or (not asked_once and now >= upload.state.ask_again_at)
        if silent and self._turns.waiting:
            upload.state = forget(upload.state)
            self._turns.pass_on(device)
            return
        self._go_on(device, upload, now)
        self._look_at = min(self._look_at, upload.state.ask_again_at)

    def reconnected(self, device: str, now: float) -> None:
        """What was asked of this device is lost; everything received stays."""
        upload = self._of.get(device)
        if upload is not None and not upload.state.complete:
            upload.state = forget(upload.state)
            self._go_on(device, upload, now)

    def verified(self, blob: BlobRef) -> bytes | None:
        """The bytes of a blob that is complete, None when they are not those of its digest. From here on nothing is
        written to it; `keep` makes it durable."""
        data = self._blobs.verified(blob)
        if data is not None:
            self._verified[blob.digest] = blob
        return data

    def discard(self, blob: BlobRef) -> None:
        """Removes what was verified, and is no use."""
        self._verified.pop(blob.digest, None)
        self._blobs.remove(blob.digest)

    def keep(self) -> None:
        """Makes durable what was verified since the last time, and enough of what is on its way that a kill or a power
        cut costs at most a window of each transfer."""
        if self._verified:
            self._blobs.keep(*self._verified.values())
            reached("coordinator.blob-finished")
            self._verified.clear()
        due = [self._of[device] for device in self._behind if device in self._of]
        self._behind.clear()
        due = [upload for upload in due if upload.unsynced >= WINDOW and not upload.state.complete]
        if due:
            self._blobs.checkpoint(*(upload.state for upload in due))
            reached("coordinator.transfer-checkpointed")
            for upload in due:
                upload.unsynced = 0

    def end(self, device: str) -> None:
        self._of.pop(device, None)
        self._turns.end(device)

    def keep_only(self, devices: Container[str]) -> None:
        """Lets go of the transfers of all other devices."""
        self._of = {device: upload for device, upload in self._of.items() if device in devices}
        self._turns.keep_only(devices)

    def digests(self) -> tuple[bytes, ...]:
        """What is on its way."""
        return tuple(upload.offer.blob.digest for upload in self._of.values())

    def clear(self) -> None:
        self._of.clear()
        self._turns.keep_only(())
        self._verified.clear()
        self._behind.clear()
        self._look_at = NEVER

    def _whole(self, digest: bytes) -> bool:
        return digest in self._verified or self._blobs.holds(digest)

    def _go_on(self, device: str, upload: Upload, now: float) -> Offer | None:
        if upload.state.complete or self._whole(upload.offer.blob.digest):
            return upload.offer
        if not self._turns.has(device):
            return None
        upload.state, need = ask(upload.state, now)
        if need is not None:
            self._look_at = min(self._look_at, upload.state.ask_again_at)
            self._link.send(device, need)
        return None
