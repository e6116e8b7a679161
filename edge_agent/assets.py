"""What a task needs on this disk: the bundle's files and the model, fetched by digest, checked, put in place."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.runtimes.engine import Vector
from protocol.blobs import BlobStore, write_durably
from protocol.bundle import Bundle, open_bundle
from protocol.errors import BundleError, Rejection, SparsefleetError
from protocol.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest
from protocol.messages import BlobRef, Task

# Graphs that only the deployment or another runtime needs stay where they are: a device's bytes are dear.
UNUSED_ROLES = frozenset({"optimizer"})


@dataclass(frozen=True, slots=True)
class Assets:
    """The bundles folder and the blob store of one agent. `backend` narrows what is fetched; "auto" fetches all."""

    bundles: Path
    blobs: BlobStore
    backend: str

    def missing(self, task: Task) -> tuple[BlobRef, ...] | Rejection:
        """What is still to be fetched, in order; sizes are checked before the first byte is asked for."""
        if task.manifest.size > MAX_MANIFEST_BYTES:
            return Rejection("manifest", f"{task.manifest.size} bytes are over the limit of {MAX_MANIFEST_BYTES}")
        if not self._has_manifest(task):
            return (task.manifest,)
        try:
            manifest = self._manifest(task)
        except BundleError as error:
            return Rejection("manifest", str(error))
        if task.model.size != manifest.total * 4:
            return Rejection("model", f"{task.model.size} bytes where the manifest says {manifest.total * 4}")
        wanted = [] if self._complete(task) else self._files(manifest, task)
        if not self.blobs.has(task.model.digest):
            wanted.append(task.model)
        missing = tuple(blob for blob in wanted if not self.blobs.has(blob.digest))
        size = sum(blob.size for blob in missing)
        if size + self.blobs.used_bytes() > self.blobs.limit_bytes:
            return Rejection("disk", f"{size} more bytes would exceed the limit of {self.blobs.limit_bytes} (disk_mib)")
        return missing

    def keep_only_for(self, task: Task, others: set[bytes]) -> None:
        """Removes every blob that neither this task nor `others` (what waits in the outbox) needs."""
        keep = others | {task.manifest.digest, task.model.digest}
        if self._has_manifest(task) and not self._complete(task):
            keep |= {blob.digest for blob in self._files(self._manifest(task), task)}
        self.blobs.keep_only(keep)

    def bundle(self, task: Task) -> Bundle:
        """The task's bundle, in its own folder; assembled on first use. Raises BundleError when it does not fit."""
        root = self._root(task)
        manifest = self._manifest(task)
        if not self._complete(task):
            self._assemble(root, task, manifest)
        # A folder from a later round lacks the record, which nothing asks for then.
        names = frozenset(
            e.path for e in self._entries(manifest, task) if not _is_record(manifest, e) or (root / e.path).is_file()
        )
        try:
            return open_bundle(root, only=names)
        except BundleError:
            # Altered on this disk: this task is refused, the next one fetches the bundle anew.
            shutil.rmtree(root, ignore_errors=True)
            raise

    def model(self, task: Task, manifest: Manifest) -> Vector:
        """float32[total]: the model the task starts from."""
        vector = np.frombuffer(self._read(task.model.digest), dtype="<f4")
        assert len(vector) == manifest.total
        return vector.astype(np.float32)

    def _assemble(self, root: Path, task: Task, manifest: Manifest) -> None:
        for old in self.bundles.glob("*"):
            shutil.rmtree(old, ignore_errors=True)
        for entry in self._entries(manifest, task):
            path = root / entry.path
            path.parent.mkdir(parents=True, exist_ok=True)
            write_durably(path, self._read(bytes.fromhex(entry.sha256)))
        # The manifest goes last: a folder that has one is whole.
        write_durably(root / MANIFEST_FILE, self._read(task.manifest.digest))

    def _read(self, digest: bytes) -> bytes:
        try:
            return self.blobs.read(digest)
        except SparsefleetError as error:
            # What is fetched can be fetched again; this task is refused, the next one does.
            self.blobs.remove(digest)
            raise BundleError(f"{error}; or wait: it is fetched again with the next task") from None

    def _root(self, task: Task) -> Path:
        return self.bundles / task.manifest.digest.hex()[:32]

    def _complete(self, task: Task) -> bool:
        return (self._root(task) / MANIFEST_FILE).exists()

    def _has_manifest(self, task: Task) -> bool:
        return self._complete(task) or self.blobs.has(task.manifest.digest)

    def _manifest(self, task: Task) -> Manifest:
        path = self._root(task) / MANIFEST_FILE
        data = path.read_bytes() if path.exists() else self._read(task.manifest.digest)
        if hashlib.sha256(data).digest() != task.manifest.digest:
            raise BundleError(f"{path}: altered since it was received; remove the folder and it is fetched again")
        return parse_manifest(data)

    def _files(self, manifest: Manifest, task: Task) -> list[BlobRef]:
        return [BlobRef(bytes.fromhex(e.sha256), e.size) for e in self._entries(manifest, task)]

    def _entries(self, manifest: Manifest, task: Task) -> list[FileEntry]:
        paths: dict[str, None] = {}
        for variant in manifest.variants:
            for name, backend in variant.backends.items():
                if self.backend in ("auto", name):
                    paths |= dict.fromkeys(p for role, p in backend.files.items() if role not in UNUSED_ROLES)
        # Torch's steps can be replayed by whoever holds the model that they start from, which is the first round's.
        if manifest.reference is not None and manifest.reference.model == task.model.digest.hex():
            paths[manifest.reference.path] = None
        return [manifest.file(path) for path in paths]


def _is_record(manifest: Manifest, entry: FileEntry) -> bool:
    return manifest.reference is not None and entry.path == manifest.reference.path
