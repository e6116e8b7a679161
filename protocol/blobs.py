"""Blobs on disk, content-addressed: whole ones by digest, partial ones resumable after any restart.

A blob appears under its digest only after its bytes were hashed, written, fsynced, renamed and the folder fsynced. A
partial blob is two files: the bytes so far, and the bitmap of chunks, which is written only after the bytes were
fsynced, so that the bitmap never promises what a power cut took.
"""

import hashlib
import os
from pathlib import Path

from protocol.errors import SparsefleetError
from protocol.messages import CHUNK_BYTES, MAX_CHUNKS, BlobRef
from protocol.transfer import Receiving, chunk_length

_RESTORE = "restore the state folder from a backup, or start with a new one"


class BlobStore:
    """A folder of blobs. `limit_bytes` bounds what partial and whole blobs may take together."""

    def __init__(self, root: Path, limit_bytes: int) -> None:
        self.root = root
        self.limit_bytes = limit_bytes
        root.mkdir(parents=True, exist_ok=True)
        for stray in root.glob("*.tmp"):
            stray.unlink()

    def path(self, digest: bytes) -> Path:
        return self.root / digest.hex()

    def has(self, digest: bytes) -> bool:
        return self.path(digest).exists()

    def used_bytes(self) -> int:
        return sum(p.stat().st_size for p in self.root.iterdir())

    def room_for(self, blob: BlobRef) -> bool:
        """Whether the blob fits into the limit. What is here of it already, whole or in part, takes no more room."""
        here = {self.path(blob.digest), self._part(blob.digest)}
        others = sum(p.stat().st_size for p in self.root.iterdir() if p not in here)
        return others + blob.size <= self.limit_bytes

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
        write_durably(self.path(blob.digest), data)
        return blob

    def whole(self, blob: BlobRef) -> bool:
        """Whether a blob is here in its full length; what its bytes are, only `read` looks at."""
        try:
            return self.path(blob.digest).stat().st_size == blob.size
        except FileNotFoundError:
            return False

    def read(self, digest: bytes) -> bytes:
        """The bytes of a blob. Raises SparsefleetError when they are gone or are not what was stored."""
        return read_blob(self.path(digest))

    def read_chunk(self, digest: bytes, index: int) -> bytes | None:
        """One chunk of a whole blob, or None when there is no such blob or chunk."""
        if not 0 <= index < MAX_CHUNKS:
            return None
        try:
            with self.path(digest).open("rb") as file:
                file.seek(index * CHUNK_BYTES)
                return file.read(CHUNK_BYTES) or None
        except OSError:
            return None

    def remove(self, digest: bytes) -> None:
        for path in (self.path(digest), self._part(digest), self._have(digest)):
            path.unlink(missing_ok=True)

    def resume(self, blob: BlobRef) -> Receiving:
        """The state of a transfer as the disk has it; a fresh one when nothing is there."""
        try:
            have = int.from_bytes(self._have(blob.digest).read_bytes(), "little")
            intact = self._part(blob.digest).stat().st_size == blob.size and have < 1 << blob.chunks
        except OSError:
            intact = False
        return Receiving(blob, have=have if intact else 0)

    def write_chunk(self, blob: BlobRef, index: int, data: bytes) -> None:
        """Writes a chunk in its place; not yet durable, see `checkpoint`."""
        assert len(data) == chunk_length(blob, index)
        descriptor = os.open(self._part(blob.digest), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if os.fstat(descriptor).st_size != blob.size:
                os.ftruncate(descriptor, blob.size)
            os.pwrite(descriptor, data, index * CHUNK_BYTES)
        finally:
            os.close(descriptor)

    def checkpoint(self, state: Receiving) -> None:
        """Makes what was received so far survive a power cut."""
        part = self._part(state.blob.digest)
        if part.exists():
            _fsync(part)
            bitmap = state.have.to_bytes(-(-state.blob.chunks // 8), "little")
            write_durably(self._have(state.blob.digest), bitmap)

    def finish(self, blob: BlobRef) -> bool:
        """Turns a complete partial blob into a whole one. False, and a fresh start, when its digest is wrong."""
        part = self._part(blob.digest)
        if blob.size == 0:
            part.touch()
        with part.open("rb") as file:
            good = hashlib.file_digest(file, "sha256").digest() == blob.digest
        if not good:
            self.remove(blob.digest)
            return False
        _fsync(part)
        part.rename(self.path(blob.digest))
        _fsync(self.root)
        self._have(blob.digest).unlink(missing_ok=True)
        return True

    def keep_only(self, digests: set[bytes]) -> None:
        """Removes every blob, whole or partial, that is not among `digests`."""
        names = {digest.hex() for digest in digests}
        for path in self.root.iterdir():
            if path.name.partition(".")[0] not in names:
                path.unlink(missing_ok=True)

    def _part(self, digest: bytes) -> Path:
        return self.root / f"{digest.hex()}.part"

    def _have(self, digest: bytes) -> Path:
        return self.root / f"{digest.hex()}.have"


def read_blob(path: Path) -> bytes:
    """The bytes of a whole blob, whose digest is its name. Raises SparsefleetError, as `BlobStore.read`."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise SparsefleetError(f"{path}: is gone; {_RESTORE}") from None
    if hashlib.sha256(data).hexdigest() != path.name:
        raise SparsefleetError(f"{path}: was altered or cut short since it was stored; {_RESTORE}")
    return data


def write_durably(path: Path, data: bytes) -> None:
    """Writes a file so that after a power cut it has either its old or its new content."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    _fsync(path.parent)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
