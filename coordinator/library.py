"""What devices may fetch: the bundle's files, its manifest, and the models, chunk by chunk straight from disk."""

from pathlib import Path

from protocol.blobs import BlobStore
from protocol.bundle import Bundle
from protocol.manifest import MANIFEST_FILE
from protocol.messages import CHUNK_BYTES, BlobRef, Chunk, Need, Unavailable


class Library:
    """Answers a Need with chunks, or says that there is no such blob here. Keeps no state of any transfer."""

    def __init__(self, bundle: Bundle, models: BlobStore) -> None:
        self._models = models
        manifest = bundle.root / MANIFEST_FILE
        self.manifest = BlobRef(bundle.digest, manifest.stat().st_size)
        self._paths: dict[bytes, Path] = {
            bytes.fromhex(entry.sha256): bundle.root / entry.path for entry in bundle.manifest.files
        }
        self._paths[bundle.digest] = manifest

    def answer(self, need: Need) -> tuple[Chunk | Unavailable, ...]:
        """Chunks in the order asked for; one Unavailable in place of all where any is not to be had."""
        found: list[Chunk | Unavailable] = []
        for index in need.indices:
            data = self._read(need.digest, index)
            if data is None:
                return (Unavailable(need.digest, f"no chunk {index} of such a blob here (any more)"),)
            found.append(Chunk(need.digest, index, data))
        return tuple(found)

    def _read(self, digest: bytes, index: int) -> bytes | None:
        path = self._paths.get(digest)
        if path is None:
            return self._models.read_chunk(digest, index)
        try:
            with path.open("rb") as file:
                file.seek(index * CHUNK_BYTES)
                return file.read(CHUNK_BYTES) or None
        except OSError:
            return None
