"""A bundle from a TrainingSpec: graphs, artifacts, parameters, parity, and the manifest last."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
from safetensors.numpy import save

from edge_agent.runtimes.backends import BACKENDS
from edge_agent.runtimes.graph_check import ARTIFACT, INFERENCE, check_graph
from edge_agent.runtimes.graph_check import PORTABLE as PORTABLE_GRAPH
from edge_agent.runtimes.ort_training import NAME as ORT_TRAINING
from edge_agent.runtimes.portable import NAME as PORTABLE
from export import graph_surgery as surgery
from export import ort_artifacts
from export.files import (
    ARTIFACTS,
    ARTIFACTS_REQUIRES,
    EVALUATION_FILE,
    INFERENCE_FILE,
    MADE,
    PORTABLE_FILES,
    PORTABLE_REQUIRES,
    entry_of,
    without_artifacts,
)
from export.graphs import Graphs, Partial, Report, capture
from export.inference import places_of
from export.layout import flat_model
from export.load import with_loads
from export.proof import with_parity
from export.spec import TrainingSpec
from export.tiers import plan_tiers, with_tiers
from protocol.bundle import MASK_FILE, PARAMETERS_FILE
from protocol.errors import BundleError, ConfigurationError
from protocol.manifest import (
    FORMAT,
    FULL,
    MANIFEST_FILE,
    Backend,
    Inference,
    Manifest,
    Variant,
    format_manifest,
)
from sparse.masks import Mask, pack_mask


def _silent(stage: str) -> None:
    """Tells nobody."""


def write_bundle(
    spec: TrainingSpec,
    out: Path,
    *,
    line: str,
    force: bool = False,
    backends: Collection[str] = MADE,
    train_last: Sequence[int] = (),
    freeze: Sequence[str] = (),
    mask: Mask | None = None,
    tiers: Sequence[float] = (),
    report: Report = _silent,
) -> Manifest:
    """Writes the bundle folder `out`, whole or not at all. `report` is told of each stage.

    backends: of MADE; the portable one is always made, and the only one of variants. The manifest says which of them
    could not be and why. train_last: a variant that trains so many layers, for each number. freeze: one variant without
    the parameters of these patterns. mask: bool[n] over the trained parameters of a pruned module, which travels along
    (see export.pruning). tiers: a narrower model for each share of channels below 1. The module's mode is left as it
    was. Raises ConfigurationError if `out` is taken or a variant cannot be, BundleError if the model cannot be trained
    on devices.
    """
    if mask is not None and any(share < 1 for share in tiers):
        raise ConfigurationError(
            "--tiers: do not go with --sparsity, whose mask is of the whole model; export with one of the two"
        )
    check_out(out, force=force)
    with _restored(spec), _temporary_beside(out) as folder:
        planned = plan_tiers(spec, tiers)
        artifacts = ORT_TRAINING in backends
        graphs = capture(spec, report, artifacts=artifacts, train_last=train_last, freeze=freeze)
        report("writing graphs and parameters")
        manifest = _with_mask(_write_files(spec, graphs, line, folder), mask, folder)
        if artifacts:
            report("building ONNX Runtime training artifacts")
            manifest = _with_artifacts(graphs, manifest, folder)
        report("checking parity with torch")
        manifest = with_parity(spec, manifest, folder)
        if planned is not None:
            manifest = with_tiers(spec, manifest, folder, planned, report)
        manifest = with_loads(manifest, folder)
        (folder / MANIFEST_FILE).write_bytes(format_manifest(manifest))
        _settle(folder, out)
    return manifest


def _write_files(spec: TrainingSpec, graphs: Graphs, line: str, folder: Path) -> Manifest:
    """Everything that any stock runtime needs. The manifest returned lacks records and further backends."""
    models = {
        PORTABLE_FILES["train"]: graphs.train,
        EVALUATION_FILE: graphs.evaluation,
        INFERENCE_FILE: graphs.inference,
        **{_partial_file(partial): partial.train for partial in graphs.partial},
    }
    for path, model in models.items():
        surgery.refuse_external_data(path, model)
        surgery.refuse_other_domains(path, model)
        graph = model.SerializeToString()
        check_graph(path, graph, INFERENCE if path == INFERENCE_FILE else PORTABLE_GRAPH)
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(graph)
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
        files=tuple(entry_of(folder, path) for path in sorted([PARAMETERS_FILE, *models])),
        variants=_variants(graphs),
        inference=Inference(INFERENCE_FILE, places_of(inference, graphs.tensors)),
        parity={},
    )


def _with_mask(manifest: Manifest, mask: Mask | None, folder: Path) -> Manifest:
    if mask is None:
        return manifest
    assert mask.shape == (manifest.parameters,), f"a mask of {mask.shape} for {manifest.parameters} parameters"
    (folder / MASK_FILE).write_bytes(pack_mask(mask))
    files = sorted((*manifest.files, entry_of(folder, MASK_FILE)), key=lambda entry: entry.path)
    return replace(manifest, files=tuple(files), mask=MASK_FILE)


def _partial_file(partial: Partial) -> str:
    return f"{PORTABLE}/{partial.scheme.name}/train.onnx"


def _variants(graphs: Graphs) -> tuple[Variant, ...]:
    full = Variant(FULL, {PORTABLE: Backend(PORTABLE_FILES, PORTABLE_REQUIRES)}, graphs.dropouts)
    return full, *(
        Variant(
            partial.scheme.name,
            {PORTABLE: Backend({**PORTABLE_FILES, "train": _partial_file(partial)}, PORTABLE_REQUIRES)},
            partial.dropouts,
            partial.scheme.frozen,
            partial.scheme.frozen_buffers,
        )
        for partial in graphs.partial
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
        return without_artifacts(manifest, folder, reason)
    trained = onnx.load(folder / ARTIFACTS["train"], load_external_data=False)
    surgery.strip(trained)
    surgery.refuse_external_data(ARTIFACTS["train"], trained)
    graph = trained.SerializeToString()
    try:
        check_graph(ARTIFACTS["train"], graph, ARTIFACT)
    except BundleError as error:
        return without_artifacts(manifest, folder, str(error))
    (folder / ARTIFACTS["train"]).write_bytes(graph)
    entries = [entry_of(folder, path) for path in ARTIFACTS.values() if path != EVALUATION_FILE]
    files = tuple(sorted((*manifest.files, *entries), key=lambda entry: entry.path))
    full = manifest.variants[0]
    made = {**full.backends, ORT_TRAINING: Backend(ARTIFACTS, ARTIFACTS_REQUIRES)}
    return replace(manifest, files=files, variants=(replace(full, backends=made), *manifest.variants[1:]))


def check_out(out: Path, *, force: bool) -> None:
    """Raises ConfigurationError where a bundle must not be written."""
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
