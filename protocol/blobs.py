"""Blobs on disk, content-addressed: whole ones by digest, partial ones resumable after any restart.

A blob appears under its digest only after its bytes were hashed, written, fsynced, renamed and the folder fsynced. A
partial blob is two files: the bytes so far, and the bitmap of chunks, which is written only after the bytes were
fsynced, so that the bitmap never promises what a power cut took.
"""

import hashlib
from pathlib import Path

from protocol.disk import LOCAL, Disk, digest_of, exists, write_durably
from protocol.errors import DamagedError, SparsefleetError
from protocol.messages import CHUNK_BYTES, MAX_CHUNKS, BlobRef
from protocol.transfer import Receiving, chunk_length

_RESTORE = "restore the state folder from a backup, or start with a new one"


class BlobStore:
    """A folder of blobs. `limit_bytes` bounds what partial and whole blobs may take together."""

    def __init__(self, root: Path, limit_bytes: int, disk: Disk = LOCAL) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.disk = disk
        disk.make_folder(root)
        names = set(disk.names(root))
        for name in names:
            # A kill may leave the bitmap of a transfer that had just ended; nothing else would ever remove it.
            lonely = name.endswith(".have") and f"{name.removesuffix('.have')}.part" not in names
            if name.endswith(".tmp") or lonely:
                disk.remove(root / name)

    def path(self, digest: bytes) -> Path:
        return self.root / digest.hex()

    def has(self, digest: bytes) -> bool:
        return exists(self.disk, self.path(digest))

    def used_bytes(self) -> int:
        return self._bytes_beside()

    def room_for(self, blob: BlobRef) -> bool:
        """Whether the blob fits into the limit. What is here of it already, whole or in part, takes no more room."""
        here = {self.path(blob.digest), self._part(blob.digest)}
        return self._bytes_beside(here) + blob.size <= self.limit_bytes

    def put(self, data: bytes) -> BlobRef:
        """Stores bytes durably and says what they are called. Raises SparsefleetError over the limit."""
        blob = BlobRef(hashlib.sha256(data).digest(), len(data))
        if self.has(blob.digest):
            return blob
        if not self.room_for(blob):
            raise SparsefleetError(
                f"{self.root}: {blob.size} more bytes would exceed the limit of {self.limit_bytes}; "
                "raise the disk limit in the settings or free space"
            )
        write_durably(self.path(blob.digest), data, self.disk)
        return blob

    def whole(self, blob: BlobRef) -> bool:
        """Whether a blob is here in its full length; what its bytes are, only `read` looks at."""
        try:
            return self.disk.size(self.path(blob.digest)) == blob.size
        except FileNotFoundError:
            return False

    def read(self, digest: bytes) -> bytes:
        """The bytes of a blob. Raises DamagedError when they are gone or are not what was stored."""
        return read_blob(self.path(digest), self.disk)

    def read_chunk(self, digest: bytes, index: int) -> bytes | None:
        """One chunk of a whole blob, or None when there is no such blob or chunk."""
        if not 0 <= index < MAX_CHUNKS:
            return None
        try:
            return self.disk.read(self.path(digest), index * CHUNK_BYTES, CHUNK_BYTES) or None
        except OSError:
            return None

    def remove(self, digest: bytes) -> None:
        for path in (self.path(digest), self._part(digest), self._have(digest)):
            self.disk.remove(path)

    def resume(self, blob: BlobRef) -> Receiving:
        """The state of a transfer as the disk has it; a fresh one when nothing is there."""
        try:
            have = int.from_bytes(self.disk.read(self._have(blob.digest)), "little")
            intact = self.disk.size(self._part(blob.digest)) == blob.size and have < 1 << blob.chunks
        except OSError:
            intact = False
        return Receiving(blob, have=have if intact else 0)

    def write_chunk(self, blob: BlobRef, index: int, data: bytes) -> None:
        """Writes a chunk in its place; not yet durable, see `checkpoint`."""
        assert len(data) == chunk_length(blob, index)
        self.disk.write_at(self._part(blob.digest), data, index * CHUNK_BYTES, blob.size)

    def checkpoint(self, state: Receiving) -> None:
        """Makes what was received so far survive a power cut."""
        part = self._part(state.blob.digest)
        if exists(self.disk, part):
            self.disk.sync(part)
            bitmap = state.have.to_bytes(-(-state.blob.chunks // 8), "little")
            write_durably(self._have(state.blob.digest), bitmap, self.disk)

    def finish(self, blob: BlobRef) -> bool:
        """Turns a complete partial blob into a whole one. False, and a fresh start, when its digest is wrong."""
        part = self._part(blob.digest)
        if blob.size == 0:
            self.disk.write(part, b"")
        if digest_of(self.disk, part) != blob.digest:
            self.remove(blob.digest)
            return False
        self.disk.sync(part)
        self.disk.rename(part, self.path(blob.digest))
        self.disk.sync(self.root)
        self.disk.remove(self._have(blob.digest))
        return True

    def keep_only(self, digests: set[bytes]) -> None:
        """Removes every blob, whole or partial, that is not among `digests`."""
        names = {digest.hex() for digest in digests}
        for name in self.disk.names(self.root):
            if name.partition(".")[0] not in names:
                self.disk.remove(self.root / name)

    def _bytes_beside(self, without: set[Path] | None = None) -> int:
        paths = (self.root / name for name in self.disk.names(self.root))
        return sum(self.disk.size(path) for path in paths if path not in (without or ()))

    def _part(self, digest: bytes) -> Path:
        return self.root / f"{digest.hex()}.part"

    def _have(self, digest: bytes) -> Path:
        return self.root / f"{digest.hex()}.have"


def read_blob(path: Path, disk: Disk = LOCAL) -> bytes:
    """The bytes of a whole blob, whose digest is its name. Raises DamagedError, as `BlobStore.read`."""
    try:
        data = disk.read(path)
    except FileNotFoundError:
        raise DamagedError(f"{path}: is gone; {_RESTORE}") from None
    if hashlib.sha256(data).hexdigest() != path.name:
        raise DamagedError(f"{path}: was altered or cut short since it was stored; {_RESTORE}")
    return data
