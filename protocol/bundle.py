"""A bundle on disk: a folder whose manifest lists every file with size and SHA-256."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from protocol.disk import LOCAL, Disk, digest_of, exists
from protocol.errors import BundleError
from protocol.manifest import MANIFEST_FILE, FileEntry, Manifest, parse_manifest

PARAMETERS_FILE = "parameters.safetensors"
REFERENCE_FILE = "reference.safetensors"
MASK_FILE = "mask.bin"


@dataclass(frozen=True, slots=True)
class Bundle:
    """An opened bundle, its files checked. `digest` is the SHA-256 of the manifest, which covers all the rest."""

    root: Path
    manifest: Manifest
    digest: bytes

    def path(self, name: str) -> Path:
        return self.root / self.manifest.file(name).path

    def read(self, name: str) -> bytes:
        """The bytes of a file, just as the manifest names them: looked at once, so that nothing comes between check and
        use. Raises BundleError."""
        entry = self.manifest.file(name)
        path = self.root / entry.path
        try:
            with path.open("rb") as file:
                data = file.read(entry.size + 1)
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
        if len(data) != entry.size or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise BundleError(f"{path}: is not what the manifest says; it was altered, export the bundle again")
        return data


def open_bundle(root: Path, *, only: frozenset[str] | None = None, disk: Disk = LOCAL) -> Bundle:
    """Opens a bundle and checks its files (or only those named). Raises BundleError naming the file at fault."""
    try:
        data = disk.read(root / MANIFEST_FILE)
    except OSError as error:
        raise BundleError(
            f"{root}: not a bundle, its {MANIFEST_FILE} cannot be read ({error.strerror}); make one with fleet-export"
        ) from None
    manifest = parse_manifest(data)
    for entry in manifest.files:
        if only is None or entry.path in only:
            check_file(root, entry, disk)
    return Bundle(root, manifest, hashlib.sha256(data).digest())


def read_mask(root: Path, manifest: Manifest) -> bytes | None:
    """The mask of a pruned model, a bit for each parameter, lowest first; None where there is none. Raises BundleError.

    sparse.masks.unpack_mask makes bool[parameters] of it.
    """
    if manifest.mask is None:
        return None
    entry = manifest.file(manifest.mask)
    size = (manifest.parameters + 7) // 8
    if entry.size != size:
        raise BundleError(f"{entry.path}: {entry.size} bytes where {manifest.parameters} parameters need {size}")
    check_file(root, entry)
    return (root / entry.path).read_bytes()


def check_file(root: Path, entry: FileEntry, disk: Disk = LOCAL) -> None:
    """Raises BundleError unless the file is there with the size and digest the manifest says."""
    path = root / entry.path
    try:
        # Only a plain file: opening a pipe would wait for ever.
        if not exists(disk, path):
            raise BundleError(f"{path}: missing from the bundle; export it again or copy the whole folder")
        size = disk.size(path)
        if size != entry.size:
            raise BundleError(f"{path}: {size} bytes where the manifest says {entry.size}; truncated or altered")
        digest = digest_of(disk, path).hex()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from None
    if digest != entry.sha256:
        raise BundleError(f"{path}: SHA-256 differs from the manifest; the file was altered")


def deploy(graph: bytes, manifest: Manifest, model: npt.NDArray[np.float32]) -> bytes:
    """The inference graph with the tensors of `model` (float32[total], manifest order) in place of its own."""
    if model.shape != (manifest.total,):
        raise BundleError(f"model: {model.shape} values where the manifest says ({manifest.total},)")
    out = bytearray(graph)
    raw = np.ascontiguousarray(model, dtype="<f4")
    for tensor in manifest.tensors:
        place = manifest.inference.places.get(tensor.name)
        if place is None:
            continue
        data = raw[tensor.offset : tensor.offset + tensor.size].tobytes()
        if place < 0 or place + len(data) > len(out):
            raise BundleError(f"{manifest.inference.path}: the place of {tensor.name} lies outside the file")
        out[place : place + len(data)] = data
    return bytes(out)
