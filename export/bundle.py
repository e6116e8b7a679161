"""A bundle from a TrainingSpec: graphs, artifacts, parameters, parity, and the manifest last."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from safetensors.numpy import save

from edge_agent.runtimes.backends import BACKENDS
from edge_agent.runtimes.engine import Engine
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.ort_training import NAME as ORT_TRAINING
from edge_agent.runtimes.portable import NAME as PORTABLE
from edge_agent.runtimes.reference import Record, load_record, model_digest
from export import graph_surgery as surgery
from export import ort_artifacts, parity, reference
from export.graphs import Graphs, Report, capture
from export.inference import places_of
from export.layout import flat_model
from export.spec import TrainingSpec
from protocol.bundle import PARAMETERS_FILE, REFERENCE_FILE, Bundle
from protocol.errors import BundleError, ConfigurationError
from protocol.manifest import (
    FORMAT,
    MANIFEST_FILE,
    MAX_REASON,
    Backend,
    FileEntry,
    Inference,
    Manifest,
    Parity,
    Reference,
    Variant,
    format_manifest,
)

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


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """What one draw of examples showed. manifest: with the record's entry; record: its bytes."""

    manifest: Manifest
    record: bytes
    measured: dict[str, Parity]
    failed: dict[str, BundleError]


def _silent(stage: str) -> None:
    """Tells nobody."""


def write_bundle(
    spec: TrainingSpec,
    out: Path,
    *,
    line: str,
    force: bool = False,
    backends: Collection[str] = MADE,
    report: Report = _silent,
) -> Manifest:
    """Writes the bundle folder `out`, whole or not at all. `report` is told of each stage.

    backends: of MADE; the portable one is always made. The manifest says which of them could not be and why. The
    module's mode is left as it was. Raises ConfigurationError if `out` is taken, BundleError if the model cannot be
    trained on devices.
    """
    _check_out(out, force)
    with _restored(spec), _temporary_beside(out) as folder:
        graphs = capture(spec, report, artifacts=ORT_TRAINING in backends)
        report("writing graphs and parameters")
        manifest = _write_files(spec, graphs, line, folder)
        if ORT_TRAINING in backends:
            report("building ONNX Runtime training artifacts")
            manifest = _with_artifacts(graphs, manifest, folder)
        report("checking parity with torch")
        manifest = _with_parity(spec, manifest, folder)
        (folder / MANIFEST_FILE).write_bytes(format_manifest(manifest))
        _settle(folder, out)
    return manifest


def _write_files(spec: TrainingSpec, graphs: Graphs, line: str, folder: Path) -> Manifest:
    """Everything that any stock runtime needs. The manifest returned lacks records and further backends."""
    (folder / PORTABLE).mkdir()
    models = {
        PORTABLE_FILES["train"]: graphs.train,
        EVALUATION_FILE: graphs.evaluation,
        INFERENCE_FILE: graphs.inference,
    }
    for path, model in models.items():
        surgery.refuse_external_data(path, model)
        surgery.refuse_other_domains(path, model)
        (folder / path).write_bytes(model.SerializeToString())
    flat = flat_model(spec.module, graphs.tensors)
    parts = {t.name: flat[t.offset : t.offset + t.size].reshape(t.shape) for t in graphs.tensors}
    (folder / PARAMETERS_FILE).write_bytes(save(parts))
    inference = (folder / INFERENCE_FILE).read_bytes()
    return Manifest(
        format=FORMAT,
        line=line,
        version=spec.version,
        tensors=graphs.tensors,
        inputs=graphs.ports.inputs,
        targets=graphs.ports.targets,
        outputs=graphs.ports.outputs,
        loss=spec.loss_name,
        metrics=tuple(spec.metrics),
        files=tuple(_entry(folder, path) for path in sorted([PARAMETERS_FILE, *models])),
        variants=(Variant("full", {PORTABLE: Backend(PORTABLE_FILES, PORTABLE_REQUIRES)}, graphs.dropouts),),
        inference=Inference(INFERENCE_FILE, places_of(inference, graphs.tensors)),
        parity={},
    )


def _with_artifacts(graphs: Graphs, manifest: Manifest, folder: Path) -> Manifest:
    """With the training runtime's artifacts, or with the reason why they are left out."""
    (folder / ORT_TRAINING).mkdir()
    reason = graphs.artifacts if isinstance(graphs.artifacts, str) else BACKENDS[ORT_TRAINING].why_not()
    if reason is None:
        assert isinstance(graphs.artifacts, onnx.ModelProto)
        try:
            ort_artifacts.generate(graphs.artifacts, graphs.tensors, folder / ORT_TRAINING)
            paths = (folder / ARTIFACTS[role] for role in ("train", "optimizer", "checkpoint"))
            ort_artifacts.check(graphs.artifacts, *paths)
        except BundleError as error:
            reason = str(error)
    if reason is not None:
        return _without_artifacts(manifest, folder, reason)
    trained = onnx.load(folder / ARTIFACTS["train"], load_external_data=False)
    surgery.strip(trained)
    surgery.refuse_external_data(ARTIFACTS["train"], trained)
    (folder / ARTIFACTS["train"]).write_bytes(trained.SerializeToString())
    entries = [_entry(folder, path) for path in ARTIFACTS.values() if path != EVALUATION_FILE]
    files = tuple(sorted((*manifest.files, *entries), key=lambda entry: entry.path))
    full = manifest.variants[0]
    made = {**full.backends, ORT_TRAINING: Backend(ARTIFACTS, ARTIFACTS_REQUIRES)}
    return replace(manifest, files=files, variants=(replace(full, backends=made),))


def _without_artifacts(manifest: Manifest, folder: Path, reason: str) -> Manifest:
    shutil.rmtree(folder / ORT_TRAINING)
    full = manifest.variants[0]
    kept = {name: backend for name, backend in full.backends.items() if name != ORT_TRAINING}
    files = tuple(f for f in manifest.files if not f.path.startswith(f"{ORT_TRAINING}/"))
    variants = (replace(full, backends=kept),)
    return replace(manifest, files=files, variants=variants, left_out={ORT_TRAINING: reason[:MAX_REASON]})


def _with_parity(spec: TrainingSpec, manifest: Manifest, folder: Path) -> Manifest:
    """With the record of the first draw that every backend holds on, or else of the first that the portable one does;
    then the others are left out. Raises BundleError if there is neither."""
    draft = Bundle(folder, manifest, b"")
    evaluator = Evaluator(draft, EVALUATION_FILE)
    engines = {name: BACKENDS[name].open(draft, "full", 1) for name in manifest.variants[0].backends}
    proofs: list[Proof] = []
    for draw in range(parity.DRAWS):
        proofs.append(_proof(spec, draw, manifest, folder, engines, evaluator))
        if not proofs[-1].failed:
            break
    # The first of those with the fewest backends left out.
    held = min((p for p in proofs if PORTABLE in p.measured), key=lambda p: len(p.failed), default=None)
    if held is None:
        raise proofs[0].failed[PORTABLE]
    (folder / REFERENCE_FILE).write_bytes(held.record)
    manifest = replace(held.manifest, parity=held.measured)
    for error in held.failed.values():
        manifest = _without_artifacts(manifest, folder, str(error))
    return manifest


def _proof(
    spec: TrainingSpec,
    draw: int,
    manifest: Manifest,
    folder: Path,
    engines: Mapping[str, Engine],
    evaluator: Evaluator,
) -> Proof:
    near = parity.beside(spec, draw)
    manifest, brief, whole = _with_record(spec, near, manifest, folder, draw)
    # What devices will replay is the file, so it is the file that has to hold, too.
    for record in (whole, brief):
        parity.evaluation(near, manifest, evaluator, record)
    measured: dict[str, Parity] = {}
    failed: dict[str, BundleError] = {}
    for name, engine in engines.items():
        try:
            found = parity.prove(near, manifest, engine, whole)
            parity.prove(near, manifest, engine, brief)
        except BundleError as error:
            failed[name] = error
        else:
            measured[name] = found
    return Proof(manifest, (folder / REFERENCE_FILE).read_bytes(), measured, failed)


def _with_record(
    spec: TrainingSpec, near: TrainingSpec, manifest: Manifest, folder: Path, draw: int
) -> tuple[Manifest, Record, Record]:
    """The manifest with torch's steps on a few examples written beside it, these as read back, and the steps on all
    examples, which are proven but not kept."""
    few, found = reference.recorded(spec, near, manifest, draw)
    (folder / REFERENCE_FILE).write_bytes(reference.format_record(found, few, manifest))
    files = sorted((*manifest.files, _entry(folder, REFERENCE_FILE)), key=lambda entry: entry.path)
    digest = model_digest(flat_model(spec.module, manifest.tensors))
    manifest = replace(manifest, files=tuple(files), reference=Reference(REFERENCE_FILE, digest))
    whole = found if reference.same_examples(few.spec, near) else parity.whole_record(near, manifest)
    return manifest, load_record(Bundle(folder, manifest, b"")), whole


def _entry(folder: Path, path: str) -> FileEntry:
    data = (folder / path).read_bytes()
    return FileEntry(path, len(data), hashlib.sha256(data).hexdigest())


def _check_out(out: Path, force: bool) -> None:
    if not out.exists():
        return
    if not force:
        raise ConfigurationError(f"{out}: exists already; choose another --out, or replace it with --force")
    if not out.is_dir() or (any(out.iterdir()) and not (out / MANIFEST_FILE).is_file()):
        raise ConfigurationError(f"{out}: is not a bundle, so --force will not replace it; choose another --out")


@contextlib.contextmanager
def _temporary_beside(out: Path) -> Iterator[Path]:
    """A folder on the same file system as `out`, gone at the end whatever happened."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.{os.getpid()}.", dir=out.parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _settle(folder: Path, out: Path) -> None:
    """Puts the whole folder in place of `out` by renaming, everything on disk first."""
    for path in [p for p in folder.rglob("*") if p.is_file()] + [folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    if out.exists():
        # The old one leaves with the temporary folder that it is moved into.
        old = folder.with_name(folder.name + ".old")
        out.rename(old)
        folder.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(out)


@contextlib.contextmanager
def _restored(spec: TrainingSpec) -> Iterator[None]:
    """Leaves every layer in the mode it was in."""
    modes = {layer: layer.training for layer in spec.module.modules()}
    try:
        yield
    finally:
        for layer, mode in modes.items():
            layer.training = mode
