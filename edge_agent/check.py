"""`edge-agent check --bundle`: does this device run the bundle, does it compute what torch computed, and how fast.

A check is a function of what is given to one finding; the table below the types names them all, in order.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edge_agent import settings as agent_settings
from edge_agent.findings import Finding, Status, as_json, exit_code, lines
from edge_agent.options import CONFIG
from edge_agent.runtimes.backends import AUTO, choose, runtime_name
from edge_agent.runtimes.certificate import ALL, Replayed, by_kind, certify, facts
from edge_agent.runtimes.parameters import initial_model, seen_by
from edge_agent.runtimes.reference import SEED, load_record
from protocol.bundle import Bundle, open_bundle
from protocol.errors import ConfigurationError
from protocol.manifest import FULL

# Of timed steps, after the first, which prepares the runtime.
TIMED = 5


@dataclass(frozen=True, slots=True)
class Given:
    """What is checked: a bundle whose files are whole, and the backend and threads that would be used."""

    bundle: Bundle
    backend: str
    threads: int
    variant: str = FULL


def run(options: argparse.Namespace) -> int:
    """Does every check and prints what was found; returns the exit code."""
    given = _given(options)
    found = {name: check(given) for name, check in CHECKS.items()}
    print(json.dumps(as_json(found)) if options.json else "\n".join(lines(found)))
    return exit_code(found)


def files(given: Given) -> Finding:
    """The bundle's files are those that its manifest lists: they were read when it was opened."""
    manifest = given.bundle.manifest
    size = sum(entry.size for entry in manifest.files)
    said = f"{manifest.line} version {manifest.version}: {len(manifest.files)} files, {size:,} bytes, digests agree"
    return Finding("ok", said, facts={"line": manifest.line, "version": manifest.version, "bytes": size})


def runtime(given: Given) -> Finding:
    """Which software would train."""
    name = f"{runtime_name()}, Python {platform.python_version()}"
    if name.startswith("onnxruntime none"):
        return Finding("warning", name, "pip install 'sparsefleet[agent-ort-training]'", facts={"runtime": name})
    return Finding("ok", name, facts={"runtime": name})


def backend(given: Given) -> Finding:
    """Which backend would be chosen, and why."""
    try:
        choice = choose(seen_by(given.bundle, given.variant), given.backend, given.threads, given.variant)
    except ConfigurationError as error:
        return Finding("error", str(error), "install what one of them needs, or export the bundle for what is here")
    return Finding("ok", f"{choice.engine.name}: {choice.reason}", facts={"backend": choice.engine.name})


def parity(given: Given) -> Finding:
    """Torch's recorded steps, replayed by every backend that would be considered and runs here."""
    wanted = ALL if given.backend == AUTO else given.backend
    if given.bundle.manifest.reference is None:
        return Finding("warning", "the bundle holds no reference steps", "export it again with this version")
    try:
        if given.bundle.manifest.variant(given.variant).keep:
            return Finding("warning", f"torch's steps on {given.variant} are not recorded", "see variant full's")
        replayed = certify(given.bundle, wanted, given.variant, given.threads)
    except ConfigurationError as error:
        return Finding("error", str(error), "export the bundle again")
    ran = [one for one in replayed if one.ran]
    details = tuple(line for one in replayed for line in _parity_lines(one))
    said = {"backends": [facts(one) for one in replayed]}
    if not ran:
        return Finding("error", "no backend runs here", "see backend", details, said)
    wrong = [one.backend for one in ran if not one.ok]
    if not wrong:
        names = ", ".join(one.backend for one in ran)
        return Finding("ok", f"{names}: all tensors within tolerance of torch's steps", "", details, said)
    # What is passed over does no harm.
    status: Status = "error" if len(wrong) == len(ran) else "warning"
    remedy = "install another onnxruntime, and tell its makers or ours"
    return Finding(status, f"{', '.join(wrong)}: computes something else than torch here", remedy, details, said)


def step_time(given: Given) -> Finding:
    """How long a training step takes on the recorded batch."""
    if given.bundle.manifest.reference is None:
        return Finding("warning", "not timed, for want of a batch", "edge-agent train with some data tells")
    try:
        record, model = load_record(given.bundle), initial_model(given.bundle, given.variant)
        engine = choose(seen_by(given.bundle, given.variant), given.backend, given.threads, given.variant).engine
        seconds = []
        for _ in range(1 + TIMED):
            started = time.perf_counter()
            engine.step(model, record.batch, SEED)
            seconds.append(time.perf_counter() - started)
    except ConfigurationError as error:
        return Finding("error", f"no step could be taken: {error}", "see backend and parity")
    first, then = 1e3 * seconds[0], 1e3 * float(np.median(seconds[1:]))
    said = (
        f"{then:.1f} ms a step of {len(record.batch)} examples with {given.threads} threads (the first {first:.1f} ms)"
    )
    return Finding("ok", said, facts={"ms": round(then, 3), "first_ms": round(first, 3), "batch": len(record.batch)})


CHECKS: Mapping[str, Callable[[Given], Finding]] = {
    "files": files,
    "runtime": runtime,
    "backend": backend,
    "parity": parity,
    "step time": step_time,
}


def _given(options: argparse.Namespace) -> Given:
    if options.config == CONFIG and not CONFIG.exists():
        training = agent_settings.training(options.backend)
    else:
        training = agent_settings.load(options.config, options.backend).training
    variant = FULL if training.variant == AUTO else training.variant
    return Given(open_bundle(options.bundle), training.backend, training.threads, variant)


def _parity_lines(replayed: Replayed) -> list[str]:
    if replayed.absent or replayed.failed:
        return [
            f"{replayed.backend}: {'not run' if replayed.absent else 'failed'}: {replayed.absent or replayed.failed}"
        ]
    wrong = [row for row in replayed.rows if not row.ok]
    lines = [
        f"{replayed.backend:14}{row.kind:13}{row.difference:9.1e} of {row.tolerance:.0e}  {row.tensor}"
        for row in by_kind(replayed.rows)
    ]
    return lines + [f"{replayed.backend:14}FAIL: {row}" for row in wrong]
