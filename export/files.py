"""The files of a bundle: where each lies, and a manifest with one more or with a backend's taken away."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

from edge_agent.runtimes.ort_training import NAME as ORT_TRAINING
from edge_agent.runtimes.portable import NAME as PORTABLE
from protocol.manifest import MAX_REASON, FileEntry, Manifest

INFERENCE_FILE = "inference.onnx"
EVALUATION_FILE = f"{PORTABLE}/eval.onnx"
PORTABLE_FILES = {"train": f"{PORTABLE}/train.onnx", "eval": EVALUATION_FILE}
ARTIFACTS = {
    "train": f"{ORT_TRAINING}/training_model.onnx",
    "eval": EVALUATION_FILE,
    "optimizer": f"{ORT_TRAINING}/optimizer_model.onnx",
    "checkpoint": f"{ORT_TRAINING}/checkpoint",
}
# Any stock release from the first that reads these graphs on.
PORTABLE_REQUIRES = "onnxruntime>=1.17"
ARTIFACTS_REQUIRES = "onnxruntime-training-cpu==1.19.2"
# What is made where nothing is said. The second is left out, with the reason, where it cannot be made.
MADE = (PORTABLE, ORT_TRAINING)


def entry_of(folder: Path, path: str) -> FileEntry:
    """The manifest's entry of a file that is there."""
    data = (folder / path).read_bytes()
    return FileEntry(path, len(data), hashlib.sha256(data).hexdigest())


def without_artifacts(manifest: Manifest, folder: Path, reason: str) -> Manifest:
    """Removes the training runtime's artifacts and says why."""
    shutil.rmtree(folder / ORT_TRAINING)
    full = manifest.variants[0]
    kept = {name: backend for name, backend in full.backends.items() if name != ORT_TRAINING}
    files = tuple(f for f in manifest.files if not f.path.startswith(f"{ORT_TRAINING}/"))
    variants = (replace(full, backends=kept), *manifest.variants[1:])
    return replace(manifest, files=files, variants=variants, left_out={ORT_TRAINING: reason[:MAX_REASON]})
