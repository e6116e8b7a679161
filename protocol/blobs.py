"""Blobs on disk, content-addressed: whole ones by digest, partial ones resumable after any restart.

A blob appears under its digest only after its bytes were hashed, written, fsynced, renamed and the folder fsynced. A
partial blob is two files: the bytes so far, and the bitmap of chunks, which is written only after the bytes were
fsynced, so that the bitmap never promises what a power cut took.
"""

import hashlib
from pathlib import Path

from protocol.disk import LOCAL, Disk, digest_of, exists, write_durably, write_durably_all
from protocol.errors import DamagedError, SparsefleetError
from protocol.messages import CHUNK_BYTES, MAX_CHUNKS, BlobRef
from protocol.transfer import Receiving, chunk_length

_RESTORE = "restore the state folder from a backup, or start with a new one"


class BlobStore:
    """A folder of blobs. `limit_bytes` bounds what partial and whole blobs may take together. sweep: whether to remove
    what a killed process left half written, which only the process that the folder belongs to may."""

    def __init__(self, root: Path, limit_bytes: int, disk: Disk = LOCAL, *, sweep: bool = True) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        self.disk = disk
        disk.make_folder(root)
        names = disk.names(root)
        for name in names if sweep else ():
            # A kill may leave the bitmap of a transfer that had just ended; nothing else would ever remove it.
            lonely = name.endswith(".have") and f"{name.removesuffix('.have')}.part" not in names
            if name.endswith(".tmp") or lonely:
                disk.remove(root / name)
        # Known without looking, because thousands of files take long to look at and updates come by the hundred.
        self._sizes: dict[str, int] = {}
        self._used = 0
        # Whether every name in the folder is known to survive a power cut. One that was made by a process killed before
        # it synced the folder is there for the next process, and gone after a power cut.
        self._names_durable = False
        self._count_anew()

    def path(self, digest: bytes) -> Path:
        return self.root / digest.hex()

    def has(self, digest: bytes) -> bool:
        there = exists(self.disk, self.path(digest))
        if not there:
            # If it was counted, somebody else removed it.
            self._counted(self.path(digest), None)
        return there

    def holds(self, digest: bytes) -> bool:
        """The same without asking the disk: what this store itself made whole, or found when it began."""
        return digest.hex() in self._sizes

    def used_bytes(self) -> int:
        return self._used

    def room_for(self, blob: BlobRef) -> bool:
        """Whether the blob fits into the limit. What is here of it already, whole or in part, takes no more room."""
        if self._would_use(blob) > self.limit_bytes:
            # Before anybody is turned away: somebody else may have removed files.
            self._count_anew()
        return self._would_use(blob) <= self.limit_bytes

    def put(self, data: bytes) -> BlobRef:
        """Stores bytes durably and says what they are called. Raises SparsefleetError over the limit."""
        blob = BlobRef(hashlib.sha256(data).digest(), len(data))
        if self.has(blob.digest):
            self._make_names_durable()
            return blob
        if not self.room_for(blob):
            raise SparsefleetError(
                f"{self.root}: {blob.size} more bytes would exceed the limit of {self.limit_bytes}; "
                "raise the disk limit in the settings or free space"
            )
        self._names_durable = False
        write_durably(self.path(blob.digest), data, self.disk)
        self._names_durable = True
        self._counted(self.path(blob.digest), blob.size)
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
            self._remove(path)

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
        self._counted(self._part(blob.digest), blob.size)

    def checkpoint(self, *states: Receiving) -> None:
        """Makes what was received so far survive a power cut, of many transfers at the price of a few."""
        begun = [state for state in states if exists(self.disk, self._part(state.blob.digest))]
        self.disk.sync(*(self._part(state.blob.digest) for state in begun))
        bitmaps = {}
        for state in begun:
            bitmaps[self._have(state.blob.digest)] = state.have.to_bytes(-(-state.blob.chunks // 8), "little")
        write_durably_all(bitmaps, self.disk)
        for path, bitmap in bitmaps.items():
            self._counted(path, len(bitmap))

    def verified(self, blob: BlobRef) -> bytes | None:
        """The bytes of a blob that is whole, or has all its chunks. None, and a fresh start, where they are others."""
        if self.has(blob.digest):
            return self.read(blob.digest)
        part = self._part(blob.digest)
        if blob.size == 0:
            self.disk.write(part, b"")
        data = self.disk.read(part)
        if hashlib.sha256(data).digest() == blob.digest:
            return data
        self.remove(blob.digest)
        return None

    def finish(self, blob: BlobRef) -> bool:
        """Turns a complete partial blob into a whole one. False, and a fresh start, when its digest is wrong."""
        part = self._part(blob.digest)
        if blob.size == 0:
            self.disk.write(part, b"")
        if digest_of(self.disk, part) != blob.digest:
            self.remove(blob.digest)
            return False
        self.keep(blob)
        return True

    def keep(self, *blobs: BlobRef) -> None:
        """Makes blobs whole whose bytes were `verified`, durably, and many at the price of a few."""
        fresh = [blob for blob in {blob.digest: blob for blob in blobs}.values() if not self.has(blob.digest)]
        self.disk.sync(*(self._part(blob.digest) for blob in fresh))
        for blob in fresh:
            self._names_durable = False
            self.disk.rename(self._part(blob.digest), self.path(blob.digest))
            self._counted(self._part(blob.digest), None)
            self._counted(self.path(blob.digest), blob.size)
        self._make_names_durable()
        for blob in fresh:
            if self._have(blob.digest).name in self._sizes:
                self._remove(self._have(blob.digest))

    def keep_only(self, digests: set[bytes]) -> None:
        """Removes every blob, whole or partial, that is not among `digests`."""
        names = {digest.hex() for digest in digests}
        for name in self.disk.names(self.root):
            if name.partition(".")[0] not in names:
                self._remove(self.root / name)

    def _make_names_durable(self) -> None:
        if not self._names_durable:
            self.disk.sync(self.root)
            self._names_durable = True

    def _would_use(self, blob: BlobRef) -> int:
        here = sum(self._sizes.get(path.name, 0) for path in (self.path(blob.digest), self._part(blob.digest)))
        return self._used - here + blob.size

    def _remove(self, path: Path) -> None:
        self.disk.remove(path)
        self._counted(path, None)

    def _counted(self, path: Path, size: int | None) -> None:
        """Notes a file's size, None of one that is gone."""
        self._used += (size or 0) - self._sizes.pop(path.name, 0)
        if size is not None:
            self._sizes[path.name] = size

    def _count_anew(self) -> None:
        self._sizes = {name: self.disk.size(self.root / name) for name in self.disk.names(self.root)}
        self._used = sum(self._sizes.values())

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
