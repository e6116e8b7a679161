"""What a task needs on this disk: the bundle's files, the mask and the model, fetched by digest, checked, put in
place."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edge_agent.differences import CatchUp
from edge_agent.masks import MaskShelf
from edge_agent.runtimes.backends import AUTO, Selection
from edge_agent.runtimes.engine import Vector
from edge_agent.slots import Slots, folder_of
from protocol.blobs import BlobStore
from protocol.bundle import PARAMETERS_FILE, Bundle, open_bundle
from protocol.disk import Disk, exists, folder_bytes, write_durably
from protocol.errors import BundleError, ConfigurationError, Rejection, SparsefleetError
from protocol.layout import layout_of, maskable_layout, take
from protocol.manifest import FULL, MANIFEST_FILE, MAX_MANIFEST_BYTES, FileEntry, Manifest, parse_manifest
from protocol.messages import BlobRef, Task
from protocol.width import narrowed
from sparse.codecs import Shared
from sparse.masks import Mask
from sparse.votes import unpack_chances

# Graphs that only the deployment or another runtime needs stay where they are: a device's bytes are dear.
UNUSED_ROLES = frozenset({"optimizer"})


@dataclass(frozen=True, slots=True)
class Assets:
    """The bundles folder and the blob store of one agent. Only the files of its variant and of one backend are fetched.

    variant: as in the settings: "auto", or the one that this device is pinned to. select: which backend, by manifest,
    digest and variant; it may change its mind. Raises ConfigurationError when none serves. slots: whose bundles stay;
    None in a process that only reads what the agent put in place. deployable: the graph to deploy is fetched too.
    """

    bundles: Path
    blobs: BlobStore
    masks: MaskShelf
    catch_up: CatchUp
    variant: str
    select: Callable[[Manifest, bytes, str], Selection]
    slots: Slots | None = None
    deployable: bool = False

    @property
    def _disk(self) -> Disk:
        return self.blobs.disk

    def variant_of(self, task: Task) -> str:
        """The variant that a task is done with here, if it is done at all."""
        return task.variant or (FULL if self.variant == AUTO else self.variant)

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
        wrong = self._wrong_variant(task, manifest)
        if wrong is not None:
            return wrong
        seen = narrowed(manifest, self.variant_of(task))
        lacking = self._lacking_mask(task, seen)
        if lacking is not None:
            return lacking
        sent = seen.total - self._left_out(task, seen)
        if task.model.size != sent * 4:
            return Rejection("model", f"{task.model.size} bytes where {sent} values of the manifest are {sent * 4}")
        maskable = maskable_layout(manifest).n_parameters
        if task.chances is not None and task.chances.size != maskable:
            return Rejection("masking", f"{task.chances.size} chances where {maskable} weights may be masked")
        try:
            wanted = self._absent(task)
        except ConfigurationError as error:
            return Rejection(error.reason, str(error))
        lacking_model = self._lacking_model(task)
        chances = () if task.chances is None else (task.chances,)
        missing = tuple(blob for blob in (*wanted, *lacking_model, *chances) if not self.blobs.has(blob.digest))
        size = sum(blob.size for blob in missing)
        if lacking_model and task.model not in lacking_model:
            size += task.model.size
        # A folder of another name than the slots' goes before this task's is made.
        held = sum(folder_bytes(self._disk, self.bundles / name) for name in self._held(task))
        if size and size + held + self.blobs.used_bytes() > self.blobs.limit_bytes:
            if self.slots is not None and self.slots.give_up_earlier(task.manifest.digest):
                self.sweep(self._root(task).name)
                return self.missing(task)
            if self.catch_up.give_up(task, "there is no room for two models"):
                return self.missing(task)
            limit = self.blobs.limit_bytes
            return Rejection(
                "disk",
                f"{size} more bytes beside the bundles that this device holds, {held} bytes, would exceed the limit of "
                f"{limit} (disk_mib)",
            )
        return missing

    def sweep(self, keep: str = "") -> None:
        """Removes the folder of every bundle that is in no slot, but for the one of this name."""
        if self.slots is None:
            return
        held = self._held() | {keep}
        for name in self._disk.names(self.bundles):
            if name not in held:
                self._disk.remove_folder(self.bundles / name)

    def _held(self, task: Task | None = None) -> set[str]:
        """The folders that stay, with a task's own."""
        slots = set() if self.slots is None else self.slots.held()
        return {folder_of(digest) for digest in slots} | ({self._root(task).name} if task else set())

    def keep_only_for(self, task: Task, others: set[bytes]) -> None:
        """Removes every blob that neither this task nor `others` (what waits in the outbox) needs."""
        keep = others | {task.manifest.digest, task.model.digest}
        if _is_whole(task):
            keep |= self.catch_up.needs(task)
        if task.mask is not None:
            keep.add(task.mask.blob.digest)
        if task.chances is not None:
            keep.add(task.chances.digest)
        if self._has_manifest(task):
            # All of the bundle, whichever backend it will be: to know that, a training process must have started.
            with suppress(ConfigurationError):
                keep |= {bytes.fromhex(entry.sha256) for entry in self._manifest(task).files}
        self.blobs.keep_only(keep)

    def do_without(self, task: Task, digest: bytes, why: str) -> bool:
        """Whether the task can be done without a blob that is not to be had: a difference, where the model is."""
        named = any(step.blob.digest == digest for step in task.differences)
        return named and self.catch_up.give_up(task, why)

    def manifest(self, task: Task) -> Manifest:
        """The task's manifest as its variant sees it. Raises BundleError where it is no longer what was fetched."""
        return narrowed(self._manifest(task), self.variant_of(task))

    def bundle(self, task: Task) -> Bundle:
        """The task's bundle as its variant sees it, in its own folder; assembled on first use. Raises BundleError when
        it does not fit."""
        root = self._root(task)
        self.assemble(task)
        try:
            opened = open_bundle(root, only=frozenset(entry.path for entry in self._entries(task)), disk=self._disk)
            return replace(opened, manifest=narrowed(opened.manifest, self.variant_of(task)))
        except BundleError:
            # Altered on this disk: this task is refused, the next one fetches the bundle anew.
            self._disk.remove_folder(root)
            raise

    def model(self, task: Task, manifest: Manifest) -> Vector:
        """float32[total]: the model the task starts from, 0 where its mask leaves out."""
        sent = np.frombuffer(self._read(task.model.digest), dtype="<f4")
        mask = self._mask(task, manifest)
        if mask is None:
            assert len(sent) == manifest.total
            return sent.astype(np.float32)
        model = np.zeros(manifest.total, dtype=np.float32)
        model[np.concatenate([mask, np.ones(manifest.total - len(mask), np.bool_)])] = sent
        return model

    def chances(self, task: Task) -> Vector | None:
        """float32[d], of the weights that may be masked, where a mask is to be learnt over them."""
        return None if task.chances is None else unpack_chances(self._read(task.chances.digest))

    def shared(self, task: Task, manifest: Manifest) -> Shared | None:
        """The mask over what the task's variant trains, and what is to be reported, if there is a mask."""
        mask = self._mask(task, manifest)
        if task.mask is None or mask is None:
            return None
        return Shared(take(mask, layout_of(manifest, self.variant_of(task)).parameters), task.mask.report)

    def _mask(self, task: Task, manifest: Manifest) -> Mask | None:
        """bool[parameters]. Raises BundleError where it was here and is no longer."""
        if task.mask is None:
            return None
        mask = self.masks.read(task.mask.digest, manifest.parameters)
        if mask is None:
            raise BundleError(f"{self.masks.root}: the mask is gone or altered; it is fetched again with the next task")
        return mask

    def _lacking_mask(self, task: Task, manifest: Manifest) -> tuple[BlobRef, ...] | Rejection | None:
        """What is to be fetched before the size of the model can be known; a mask that is fetched is put in place."""
        if task.mask is None:
            return None
        missing = self.masks.missing(task.mask, manifest.parameters)
        if not isinstance(missing, BlobRef):
            return missing
        if not self.blobs.has(missing.digest):
            return (missing,)
        try:
            data = self._read(missing.digest)
        except BundleError as error:
            return Rejection("mask", str(error))
        self.blobs.remove(missing.digest)
        return self.masks.take(task.mask, manifest.parameters, data)

    def _lacking_model(self, task: Task) -> tuple[BlobRef, ...]:
        """What of the task's model is to be fetched: slices and the values of a mask have no differences."""
        if _is_whole(task):
            return self.catch_up.missing(task, layout_of(self._manifest(task), FULL))
        return () if self.blobs.has(task.model.digest) else (task.model,)

    def _left_out(self, task: Task, manifest: Manifest) -> int:
        mask = self._mask(task, manifest)
        return 0 if mask is None else len(mask) - int(np.count_nonzero(mask))

    def _wrong_variant(self, task: Task, manifest: Manifest) -> Rejection | None:
        wanted = self.variant_of(task)
        if self.variant not in (AUTO, wanted):
            return Rejection(
                "variant",
                f"{wanted!r} is asked for, and this device's settings say {self.variant!r}; set `variant` to {AUTO!r}",
            )
        if all(wanted != v.name for v in manifest.variants):
            names = ", ".join(v.name for v in manifest.variants)
            return Rejection("variant", f"{wanted!r} is not in this bundle, which holds {names}; set `variant`")
        return None

    def assemble(self, task: Task) -> None:
        """Puts what was fetched of the bundle in its folder. Raises BundleError where it is no longer what it was."""
        root = self._root(task)
        self.sweep(root.name)
        entries = self._entries(task)
        for place, entry in enumerate(entries):
            path, digest = root / entry.path, bytes.fromhex(entry.sha256)
            if not _is_there(self._disk, path, entry):
                self._disk.make_folder(path.parent)
                write_durably(path, self._read(digest), self._disk)
            if self.blobs.holds(digest) and all(other.sha256 != entry.sha256 for other in entries[place + 1 :]):
                # Twice on the disk is more than the limit allows.
                self.blobs.remove(digest)
        if not exists(self._disk, root / MANIFEST_FILE):
            write_durably(root / MANIFEST_FILE, self._read(task.manifest.digest), self._disk)

    def _read(self, digest: bytes) -> bytes:
        try:
            return self.blobs.read(digest)
        except SparsefleetError as error:
            # What is fetched can be fetched again; this task is refused, the next one does.
            self.blobs.remove(digest)
            raise BundleError(f"{error}; or wait: it is fetched again with the next task") from None

    def _root(self, task: Task) -> Path:
        return self.bundles / folder_of(task.manifest.digest)

    def _has_manifest(self, task: Task) -> bool:
        return exists(self._disk, self._root(task) / MANIFEST_FILE) or self.blobs.has(task.manifest.digest)

    def _manifest(self, task: Task) -> Manifest:
        path = self._root(task) / MANIFEST_FILE
        data = self._disk.read(path) if exists(self._disk, path) else self._read(task.manifest.digest)
        if hashlib.sha256(data).digest() != task.manifest.digest:
            raise BundleError(f"{path}: altered since it was received; remove the folder and it is fetched again")
        return parse_manifest(data)

    def _absent(self, task: Task) -> list[BlobRef]:
        """What is not in the bundle's folder yet."""
        root = self._root(task)
        entries = [e for e in self._entries(task) if not _is_there(self._disk, root / e.path, e)]
        return [BlobRef(bytes.fromhex(e.sha256), e.size) for e in entries]

    def _entries(self, task: Task) -> list[FileEntry]:
        wanted = self.variant_of(task)
        manifest = narrowed(self._manifest(task), wanted)
        backend = manifest.variant(wanted).backends[self.select(manifest, task.manifest.digest, wanted).name]
        paths = dict.fromkeys(path for role, path in backend.files.items() if role not in UNUSED_ROLES)
        if self.deployable and not manifest.variant(wanted).keep:
            # It has the shapes of the whole model, which a tier has not.
            paths[manifest.inference.path] = None
        return [manifest.file(path) for path in (*paths, *self._record(task, manifest))]

    def _record(self, task: Task, manifest: Manifest) -> list[str]:
        """Torch's steps, and the exported model that they start from where it is not the task's, as a first round's is:
        a trial needs both. A bundle that passed does with what is here of them."""
        if manifest.reference is None:
            return []
        record = manifest.reference.path
        if manifest.reference.model == task.model.digest.hex():
            return [record]
        if self.slots is not None and not self.slots.is_committed(task.manifest.digest):
            return [record, PARAMETERS_FILE]
        return [path for path in (record, PARAMETERS_FILE) if exists(self._disk, self._root(task) / path)]


def _is_whole(task: Task) -> bool:
    return task.mask is None and task.channels is None


def _is_there(disk: Disk, path: Path, entry: FileEntry) -> bool:
    """Whether a file of this size is there; its bytes are held against the manifest when the bundle is opened."""
    return exists(disk, path) and disk.size(path) == entry.size
