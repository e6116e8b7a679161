"""`python -m edge_agent.training_check`: runtime, data and one training step, in a process that may die of them.

A finding a line, as JSON, each after a line that names what is begun: whoever started this knows what killed it.
"""

import argparse
import contextlib
import json
import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np

from edge_agent import data
from edge_agent.doubts import data_root
from edge_agent.findings import Finding
from edge_agent.held_out import divided
from edge_agent.probes import compared_by, recall
from edge_agent.runtimes.backends import AUTO, BACKENDS, runtime_name, select
from edge_agent.runtimes.reference import SEED
from edge_agent.settings import AgentSettings, load, state_folder
from edge_agent.state_view import held_bundles
from protocol.bundle import Bundle, check_file, open_bundle
from protocol.errors import BundleError, ConfigurationError
from protocol.manifest import FULL
from protocol.width import narrowed

NO_BUNDLE = "no bundle is here yet; the first task brings one"
# Of the step that is tried: enough for BatchNorm, little for a small board.
BATCH = 8
# Of the values that it starts from, where the exported ones are not kept.
SCALE = 0.05


@dataclass(frozen=True, slots=True)
class Tried:
    """What is tried: the newest bundle on this disk, as a variant that is here whole, by a backend. None without."""

    settings: AgentSettings
    base: Path
    state: Path
    bundle: Bundle | None
    variant: str = FULL
    backend: str = ""
    reason: str = ""


def runtime(tried: Tried | None) -> Finding:
    """Whether onnxruntime can be loaded here, and which it is."""
    del tried
    from edge_agent.runtimes.onnx_session import import_onnxruntime

    remedy = f"install one for Python {platform.python_version()} on {platform.machine()}: see README, Installing"
    try:
        import_onnxruntime()
    except ConfigurationError as error:
        return Finding("error", str(error), remedy)
    return Finding("ok", f"{runtime_name()}, Python {platform.python_version()}", facts={"runtime": runtime_name()})


def local_data(tried: Tried) -> Finding:
    """Whether there is data that the bundle can be trained on, and how much."""
    if tried.bundle is None:
        return _data_unread(tried.settings, tried.base)
    manifest, remedy = narrowed(tried.bundle.manifest, tried.variant), "mend the data, or [data] in the configuration"
    try:
        found = data.load(tried.settings.data, manifest, tried.base)
        trained, held_out = divided(found, tried.settings.data, manifest, tried.base)
    except ConfigurationError as error:
        return Finding("error", str(error), remedy, exit_code=error.exit_code)
    held, left_out = 0 if held_out is None else len(held_out), found.left_out
    facts = {"examples": len(trained), "held_out": held, "left_out": left_out.count}
    said = f"{len(trained):,} examples, " + (f"and {held:,} held out, " if held else "")
    if left_out.count:
        return Finding("warning", f"{said}left out: {left_out}", remedy, facts=facts)
    return Finding("ok", f"{said}labels in range, every value finite", facts=facts)


def backend(tried: Tried) -> Finding:
    """Which backend would train, and why."""
    if tried.bundle is None:
        return Finding("skipped", NO_BUNDLE)
    if not tried.backend:
        return Finding("error", tried.reason, "install what it needs, or set training.backend", exit_code=3)
    return Finding("ok", f"{tried.backend}: {tried.reason}", facts={"backend": tried.backend})


def parity(tried: Tried) -> Finding:
    """What came of replaying torch's recorded step here, when the model that it starts from was at hand."""
    if tried.bundle is None or not tried.backend:
        return Finding("skipped", NO_BUNDLE if tried.bundle is None else "no backend")
    if tried.bundle.manifest.reference is None:
        return Finding("warning", "the bundle holds no reference steps", "export it again with this version")
    known = recall(tried.state, tried.bundle.digest, compared_by(runtime_name(), tried.variant))
    if tried.backend not in known:
        said = "not compared here: the model of torch's recorded step was not at hand"
        return Finding("skipped", said, "edge-agent check --bundle FOLDER replays all steps of an exported bundle")
    if known[tried.backend]:
        return Finding("error", f"{tried.backend}: {known[tried.backend]}", "install another onnxruntime")
    return Finding("ok", f"{tried.backend} agreed with torch's recorded step on this device")


def step(tried: Tried) -> Finding:
    """One training step on this device's own data, whose result is let go."""
    if tried.bundle is None or not tried.backend:
        return Finding("skipped", NO_BUNDLE if tried.bundle is None else "no backend")
    manifest, threads = narrowed(tried.bundle.manifest, tried.variant), tried.settings.training.threads
    try:
        examples = data.load(tried.settings.data, manifest, tried.base)
    except ConfigurationError:
        return Finding("skipped", "no data to take it on")
    seen = Bundle(tried.bundle.root, manifest, tried.bundle.digest)
    rng = np.random.default_rng(SEED)
    try:
        engine = BACKENDS[tried.backend].open(seen, tried.variant, threads)
        model = (SCALE * rng.standard_normal(manifest.total)).astype(np.float32)
        done = engine.step(model, next(data.batches(examples, min(BATCH, len(examples)), rng)), SEED)
    except ConfigurationError as error:
        return Finding("error", str(error), "see runtime and backend", exit_code=error.exit_code)
    if not (np.isfinite(done.loss) and np.isfinite(done.gradient).all()):
        return Finding("error", f"loss {done.loss} or gradient is not finite", "check the data's scale")
    return Finding("ok", f"loss {done.loss:.3f} from random values, every gradient finite")


CHECKS: Mapping[str, Callable[[Tried], Finding]] = {
    "runtime": runtime,
    "data": local_data,
    "backend": backend,
    "parity": parity,
    "step": step,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edge_agent.training_check", description=__doc__)
    parser.add_argument("--config", type=Path, help="default: the runtime alone is tried")
    parser.add_argument("--backend")
    options = parser.parse_args()
    # What a source of data prints is no finding.
    out = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        if options.config is None:
            _found(out, "runtime", lambda: runtime(None))
            return
        tried = _tried(options.config, options.backend)
        for name, check in CHECKS.items():
            _found(out, name, partial(check, tried))


def _found(out: TextIO, name: str, check: Callable[[], Finding]) -> None:
    print(json.dumps({"begun": name}), file=out, flush=True)
    finding = check()
    said = {name: getattr(finding, name) for name in ("status", "said", "remedy", "exit_code")}
    print(json.dumps({"found": name, **said, "facts": dict(finding.facts)}), file=out, flush=True)


def _tried(config: Path, wanted: str | None) -> Tried:
    settings = load(config, wanted)
    state = state_folder(settings, config)
    held = held_bundles(state)
    if not held:
        return Tried(settings, config.parent, state, None)
    folder, problem = held[-1].folder, ""
    asked = settings.training.variant
    try:
        bundle = open_bundle(folder, only=frozenset())
    except BundleError:
        return Tried(settings, config.parent, state, None)
    for variant in [v.name for v in bundle.manifest.variants if asked in (AUTO, v.name)]:
        known = recall(state, bundle.digest, compared_by(runtime_name(), variant))
        failed = {name: said for name, said in known.items() if said}
        try:
            chosen = select(bundle.manifest, settings.training.backend, variant, failed)
            _check_files(bundle, variant, chosen.name)
        except ConfigurationError as error:
            problem = problem or str(error)
            continue
        return Tried(settings, config.parent, state, bundle, variant, chosen.name, chosen.reason)
    return Tried(settings, config.parent, state, bundle, reason=problem or f"variant {asked!r} is not in the bundle")


def _check_files(bundle: Bundle, variant: str, name: str) -> None:
    """Raises BundleError where a graph that this backend trains with is not here."""
    roles = bundle.manifest.variant(variant).backends[name].files
    for role, path in roles.items():
        if role in ("train", "graph"):
            check_file(bundle.root, bundle.manifest.file(path))


def _data_unread(settings: AgentSettings, base: Path) -> Finding:
    """Without a bundle nobody knows what the arrays must be like; that there are files is seen."""
    root = data_root(settings, base)
    if root is None:
        return Finding("ok", f"{settings.data.source}; looked at more closely when a bundle is here")
    if not root.exists():
        remedy = "put the data there (is its disk mounted?), or set data.path to where it is"
        return Finding("error", f"data.path: {root}: nothing is there", remedy, exit_code=3)
    return Finding("ok", f"{root} is there; looked at more closely when a bundle is here")


if __name__ == "__main__":
    main()
