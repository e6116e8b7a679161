"""Width tiers: graphs of narrower models, to be cut out of the dense one by its channels; see protocol/width.py."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from edge_agent.runtimes.evaluator import Evaluator
from edge_agent.runtimes.portable import NAME as PORTABLE
from edge_agent.runtimes.portable import PortableEngine
from export import graph_surgery as surgery
from export import parity
from export.files import PORTABLE_REQUIRES, entry_of
from export.graphs import Graphs, Report, capture
from export.layout import flat_model
from export.load import load_of
from export.spec import TrainingSpec
from protocol.bundle import Bundle
from protocol.errors import BundleError, ConfigurationError
from protocol.manifest import FULL, Backend, ChannelGroup, Manifest, Parity, Segment, Variant
from protocol.width import first_channels, narrowed, places
from sparse.channels import channel_structure, counts, cut
from sparse.channels.removal import try_out
from sparse.structure import Structure

# Of a tier's name, in percent of the channels kept.
_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Planned:
    """What channels there are and which share of them each tier keeps, before anything is captured.

    groups, structure: as sparse.channels found them. keep: of each tier by name, how many channels of each group.
    """

    groups: tuple[ChannelGroup, ...]
    structure: Structure
    keep: dict[str, dict[str, int]]


def plan_tiers(spec: TrainingSpec, fractions: Sequence[float]) -> Planned | None:
    """The tiers of these shares of channels; 1.0 is the variant `full`, which is there anyway. None without others.

    Raises ConfigurationError for shares that are no tiers, and for a model without channels to leave out.
    """
    names = _names(fractions)
    if not names:
        return None
    found, structure = channel_structure(spec.module, spec.input_tensors)
    try:
        keep = {name: counts(found, fraction) for name, fraction in names.items()}
        for name in keep:
            kept = {g.name: np.arange(keep[name][g.name]) for g in found}
            try_out(spec.module, cut(spec.module, structure, kept), structure, kept, spec.input_tensors)
    except ValueError as error:
        raise ConfigurationError(f"--tiers: {error}") from None
    groups = tuple(ChannelGroup(g.name, g.size, g.multiple) for g in found)
    _refuse_equals({FULL: {g.name: g.size for g in groups}, **keep}, names)
    return Planned(groups, structure, keep)


def with_tiers(spec: TrainingSpec, manifest: Manifest, folder: Path, planned: Planned, report: Report) -> Manifest:
    """Writes each tier's graphs, proves them against torch and adds them to the manifest. Raises BundleError naming the
    tier and what is wrong with it."""
    known = {t.name for t in manifest.tensors}
    axes = {
        name: tuple(tuple(Segment(s.group, s.size, s.block) for s in axis) for axis in cuts)
        for name, cuts in planned.structure.items()
        if name in known
    }
    tiers = tuple(Variant(name, {PORTABLE: _backend(name)}, keep=keep) for name, keep in planned.keep.items())
    full = replace(manifest.variants[0], load=load_of(folder / manifest.variants[0].backends[PORTABLE].files["train"]))
    variants = (full, *manifest.variants[1:], *tiers)
    manifest = replace(manifest, variants=variants, groups=planned.groups, axes=axes)
    for tier in tiers:
        try:
            manifest = _with_tier(spec, manifest, folder, planned, tier.name, report)
        except BundleError as error:
            raise BundleError(f"{tier.name}: {error}") from None
    return manifest


def _with_tier(
    spec: TrainingSpec, manifest: Manifest, folder: Path, planned: Planned, name: str, report: Report
) -> Manifest:
    channels = first_channels(manifest, name)
    narrow = replace(spec, module=cut(spec.module, planned.structure, channels))
    seen = narrowed(manifest, name)
    sliced = flat_model(spec.module, manifest.tensors)[places(manifest, channels)]
    assert np.array_equal(flat_model(narrow.module, seen.tensors), sliced), f"{name}: places and module differ"
    graphs = capture(narrow, lambda stage: report(f"{name}: {stage}"), artifacts=False)
    _refuse_others(manifest, seen, graphs)
    report(f"{name}: checking parity with torch")
    paths = _backend(name).files
    for path, model in ((paths["train"], graphs.train), (paths["eval"], graphs.evaluation)):
        _write(folder, path, model)
    entries = (entry_of(folder, path) for path in paths.values())
    files = tuple(sorted((*manifest.files, *entries), key=lambda entry: entry.path))
    held = replace(manifest.variant(name), dropouts=graphs.dropouts, load=load_of(folder / paths["train"]))
    variants = tuple(held if v.name == name else v for v in manifest.variants)
    manifest = replace(manifest, files=files, variants=variants)
    proven = _proven(narrow, Bundle(folder, narrowed(manifest, name), b""), name)
    return replace(manifest, parity={**manifest.parity, f"{name}/{PORTABLE}": proven})


def _proven(narrow: TrainingSpec, draft: Bundle, name: str) -> Parity:
    """What was measured on the first draw that holds, as in export/proof.py. Raises the first draw's BundleError."""
    engine = PortableEngine(draft, name)
    evaluator = Evaluator(draft, draft.manifest.variant(name).backends[PORTABLE].files["eval"])
    errors: list[BundleError] = []
    for draw in range(parity.DRAWS):
        near = parity.beside(narrow, draw)
        record = parity.whole_record(near, draft.manifest)
        try:
            parity.evaluation(near, draft.manifest, evaluator, record, name)
            return parity.prove(near, draft.manifest, engine, record, name)
        except BundleError as error:
            errors.append(error)
    raise errors[0]


def _backend(name: str) -> Backend:
    files = {role: f"{PORTABLE}/{name}/{role}.onnx" for role in ("train", "eval")}
    return Backend(files, PORTABLE_REQUIRES)


def _write(folder: Path, path: str, model: onnx.ModelProto) -> None:
    surgery.refuse_external_data(path, model)
    surgery.refuse_other_domains(path, model)
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_bytes(model.SerializeToString())


def _refuse_others(manifest: Manifest, seen: Manifest, graphs: Graphs) -> None:
    """The narrower model must be the dense one in everything but shapes: devices and masks of dropout go by names."""
    made = [(t.name, t.shape, t.kind) for t in graphs.tensors]
    meant = [(t.name, t.shape, t.kind) for t in seen.tensors]
    if made != meant:
        wrong = next((a for a, b in zip(made, meant, strict=False) if a != b), made[-1])
        raise BundleError(f"{wrong[0]}: the narrower model has it as {wrong[1]}; forward makes another network of it")
    if (graphs.ports.inputs, graphs.ports.targets, graphs.ports.outputs) != (
        manifest.inputs,
        manifest.targets,
        manifest.outputs,
    ):
        raise BundleError("module: with fewer channels it takes or gives other shapes; forward depends on its width")
    if [d.name for d in graphs.dropouts] != [d.name for d in manifest.variants[0].dropouts]:
        raise BundleError("module: with fewer channels it has other dropouts; forward depends on its width")


def _names(fractions: Sequence[float]) -> dict[str, float]:
    names: dict[str, float] = {}
    for fraction in fractions:
        if not 0 < fraction <= 1:
            nearest = 1.0 if fraction > 1 else 0.01
            raise ConfigurationError(
                f"--tiers: {fraction:g} is no share of the channels; the nearest that works is {nearest:g}"
            )
        percent = round(100 * fraction)
        if percent == 0 or (percent == 100 and fraction < 1):
            nearest = 0.01 if percent == 0 else 0.99
            raise ConfigurationError(
                f"--tiers: {fraction:g} rounds to {percent} %, and tiers are named in whole percent; the nearest that "
                f"works is {nearest:g}"
            )
        name = FULL if fraction == 1 else f"tier-{percent:0{_DIGITS}d}"
        if name in names:
            raise ConfigurationError(
                f"--tiers: {names[name]:g} and {fraction:g} are both {name}; leave one of them out"
            )
        names[name] = fraction
    return {name: fraction for name, fraction in names.items() if name != FULL}


def _refuse_equals(keep: dict[str, dict[str, int]], fractions: dict[str, float]) -> None:
    seen: dict[tuple[tuple[str, int], ...], str] = {}
    for name, numbers in keep.items():
        other = seen.setdefault(tuple(numbers.items()), name)
        if other != name:
            raise ConfigurationError(
                f"--tiers: {fractions[name]:g} keeps as many channels of every group as {fractions.get(other, 1.0):g} "
                f"({', '.join(f'{count} of {group}' for group, count in numbers.items())}); leave one of them out"
            )
