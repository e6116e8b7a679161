"""Parity of a whole bundle: every variant in every backend against torch, and the record that devices will replay."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from edge_agent.runtimes.backends import BACKENDS
from edge_agent.runtimes.engine import Engine
from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.portable import NAME as PORTABLE
from edge_agent.runtimes.reference import Record, load_record, model_digest
from export import parity, reference
from export.files import EVALUATION_FILE, entry_of, without_artifacts
from export.layout import flat_model
from export.spec import TrainingSpec
from protocol.bundle import REFERENCE_FILE, Bundle
from protocol.errors import BundleError
from protocol.manifest import FULL, Manifest, Parity, Reference

# A variant's name and a backend's.
Held = tuple[str, str]


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """What one draw of examples showed. manifest: with the record's entry; record: its bytes."""

    manifest: Manifest
    record: bytes
    measured: dict[Held, Parity]
    failed: dict[Held, BundleError]


def with_parity(spec: TrainingSpec, manifest: Manifest, folder: Path) -> Manifest:
    """With the record of the first draw that every backend holds on, or else of the first that the portable one does;
    then the others are left out. Raises BundleError if there is neither."""
    draft = Bundle(folder, manifest, b"")
    evaluator = Evaluator(draft, EVALUATION_FILE)
    opened = [(v.name, name) for v in manifest.variants for name in v.backends]
    engines: dict[Held, Engine] = {(v, name): BACKENDS[name].open(draft, v, 1) for v, name in opened}
    proofs: list[Proof] = []
    for draw in range(parity.DRAWS):
        proofs.append(_proof(spec, draw, manifest, folder, engines, evaluator))
        if not proofs[-1].failed:
            break
    # The first of those with the fewest backends left out.
    certain = [p for p in proofs if all(name != PORTABLE for _, name in p.failed)]
    best = min(certain, key=lambda p: len(p.failed), default=None)
    if best is None:
        raise next(error for (_, name), error in proofs[0].failed.items() if name == PORTABLE)
    (folder / REFERENCE_FILE).write_bytes(best.record)
    measured = {name if v == FULL else f"{v}/{name}": found for (v, name), found in best.measured.items()}
    manifest = replace(best.manifest, parity=measured)
    for error in best.failed.values():
        manifest = without_artifacts(manifest, folder, str(error))
    return manifest


def _proof(
    spec: TrainingSpec,
    draw: int,
    manifest: Manifest,
    folder: Path,
    engines: Mapping[Held, Engine],
    evaluator: Evaluator,
) -> Proof:
    near = parity.beside(spec, draw)
    manifest, brief, whole = _with_record(spec, near, manifest, folder, draw)
    # What devices will replay is the file, so it is the file that has to hold, too.
    for record in (whole, brief):
        parity.evaluation(near, manifest, evaluator, record)
    measured: dict[Held, Parity] = {}
    failed: dict[Held, BundleError] = {}
    for held, engine in engines.items():
        try:
            found = parity.prove(near, manifest, engine, whole, held[0])
            parity.prove(near, manifest, engine, brief, held[0])
        except BundleError as error:
            failed[held] = error
        else:
            measured[held] = found
    return Proof(manifest, (folder / REFERENCE_FILE).read_bytes(), measured, failed)


def _with_record(
    spec: TrainingSpec, near: TrainingSpec, manifest: Manifest, folder: Path, draw: int
) -> tuple[Manifest, Record, Record]:
    """The manifest with torch's steps on a few examples written beside it, these as read back, and the steps on all
    examples, which are proven but not kept."""
    few, found = reference.recorded(spec, near, manifest, draw)
    (folder / REFERENCE_FILE).write_bytes(reference.format_record(found, few, manifest))
    files = sorted((*manifest.files, entry_of(folder, REFERENCE_FILE)), key=lambda entry: entry.path)
    digest = model_digest(flat_model(spec.module, manifest.tensors))
    manifest = replace(manifest, files=tuple(files), reference=Reference(REFERENCE_FILE, digest))
    whole = found if reference.same_examples(few.spec, near) else parity.whole_record(near, manifest)
    return manifest, load_record(Bundle(folder, manifest, b"")), whole
