"""The mask that the fleet shares, on this disk: fetched whole or as a difference to the last one, and kept from task to
task, so that most rounds need none of it."""

from pathlib import Path

from protocol.disk import LOCAL, Disk, write_durably
from protocol.errors import Rejection
from protocol.messages import BlobRef, SharedMask
from sparse.codecs import PayloadError, decode_mask, max_mask_bytes
from sparse.masks import Mask, mask_digest, pack_mask, unpack_mask


class MaskShelf:
    """A folder that holds the last mask, in a file that is called as its digest."""

    def __init__(self, root: Path, disk: Disk = LOCAL) -> None:
        self.root, self._disk = root, disk
        disk.make_folder(root)

    def missing(self, shared: SharedMask, n: int) -> BlobRef | Rejection | None:
        """The blob that is still needed for a mask of n parameters; None where the mask is here."""
        if self.read(shared.digest, n) is not None:
            return None
        if shared.blob.size > max_mask_bytes(n):
            return Rejection("mask", f"{shared.blob.size} bytes where a mask of {n} has at most {max_mask_bytes(n)}")
        if shared.base is not None and self.read(shared.base, n) is None:
            return Rejection("mask-base", f"mask {shared.base.hex()[:12]}, to which this is a difference, is not here")
        return shared.blob

    def take(self, shared: SharedMask, n: int, data: bytes) -> Rejection | None:
        """Keeps the mask that `data`, the blob's bytes, says, in place of any other; or why it is none."""
        base = None if shared.base is None else self.read(shared.base, n)
        try:
            mask = decode_mask(data, n, base)
        except PayloadError as error:
            return Rejection("mask", str(error))
        if mask_digest(mask) != shared.digest:
            return Rejection("mask", f"mask {mask_digest(mask).hex()[:12]} where {shared.digest.hex()[:12]} is due")
        self._keep(mask)
        return None

    def read(self, digest: bytes, n: int) -> Mask | None:
        """The mask of this digest: bool[n]; None where another one is here, or none that is intact."""
        try:
            mask = unpack_mask(self._disk.read(self.root / digest.hex()), n)
        except (OSError, ValueError):
            return None
        return mask if mask_digest(mask) == digest else None

    def _keep(self, mask: Mask) -> None:
        kept = self.root / mask_digest(mask).hex()
        write_durably(kept, pack_mask(mask), self._disk)
        for name in self._disk.names(self.root):
            if name != kept.name:
                self._disk.remove(self.root / name)
