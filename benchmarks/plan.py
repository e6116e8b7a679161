"""How far `fleet-export plan` is off: predictions for the zoo on this machine, beside what fresh processes measure.

    python -m benchmarks.plan                             # the whole zoo, batches of 1, 8 and 32
    python -m benchmarks.plan --quick --json
    python -m benchmarks.plan --models lstm --batches 4

`predicted_ms` and `measured_ms` are a thread's time on the processor for a step with SGD and momentum; calibration and
steps took turns in one process, for a shared machine changes its pace by a factor of two from one second to the next.
`predicted_mib` and `measured_mib` are the most that a fresh process has resident, packing of an update included; for
these the machine is calibrated once, as edge-agent calibrate does it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import bundles
from benchmarks.harness import ONE_THREAD, Row, options, progress_console, publish
from benchmarks.zoo import ZOO
from devices.datasets import PROJECT_ROOT
from export.plan.command import THIS, device_of
from export.plan.prediction import Wanted, predict
from protocol.bundle import Bundle
from protocol.command import run_command
from protocol.errors import SparsefleetError
from protocol.profile import Profile
from protocol.records import read_record

QUICK_MODELS, QUICK_BATCHES, BATCHES = ("cnn_1d", "cnn_2conv"), (8,), (1, 8, 32)
_MIB = 1 << 20


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.prog = "python -m benchmarks.plan"
    parser.add_argument("--models", nargs="+", choices=tuple(ZOO), metavar="MODEL", help=f"of {', '.join(ZOO)}")
    parser.add_argument("--batches", nargs="+", type=int, help="default: 1 8 32")
    parser.set_defaults(command=_run)
    return run_command(parser, None if arguments is None else list(arguments))


def _run(chosen: argparse.Namespace) -> int:
    models = chosen.models or (QUICK_MODELS if chosen.quick else tuple(ZOO))
    batches = tuple(chosen.batches or (QUICK_BATCHES if chosen.quick else BATCHES))
    rows: list[Row] = []
    device = device_of(THIS)
    with tempfile.TemporaryDirectory(prefix="plan-") as folder, Progress(console=progress_console()) as progress:
        job = progress.add_task("", total=len(models) * len(batches))
        for model in models:
            progress.update(job, description=model)
            bundle = bundles.write(model, Path(folder) / model, max(2, *batches), chosen.seed)
            for batch in batches:
                rows.append(compare(model, bundle, device, batch))
                progress.advance(job)
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Plans and what became of them", notes=notes(rows))
    return 0


def compare(model: str, bundle: Bundle, device: Profile, batch: int) -> Row:
    """One row: what was predicted, and what a fresh process shows."""
    found = _measured(bundle.root, bundles.data_beside(bundle.root), batch)
    pace = read_record(Profile, found["profile"])
    seconds = predict(bundle, pace, Wanted(batch=batch)).pace
    mebibytes = predict(bundle, device, Wanted(batch=batch)).memory.peak / _MIB
    return {
        "model": model,
        "batch": batch,
        "predicted_ms": round(1e3 * seconds.step_s, 3),
        "measured_ms": round(found["ms"], 3),
        "time_ratio": round(1e3 * seconds.step_s / found["ms"], 3),
        "predicted_mib": round(mebibytes, 1),
        "measured_mib": round(found["peak_mib"], 1),
        "memory_ratio": round(mebibytes / found["peak_mib"], 3),
        "unknown": seconds.unknown,
        "guessed": " ".join(seconds.guessed),
    }


def _measured(bundle: Path, data: Path, batch: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.plan_worker", str(bundle), str(data), "--batch", str(batch)]
    environment = {**os.environ, **ONE_THREAD}
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=environment)
    if done.returncode != 0:
        raise SparsefleetError(f"{bundle.name}, batch {batch}: {done.stderr.strip()[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def notes(rows: Sequence[Row]) -> list[str]:
    """The median error, and how many rows are as near as one would like."""
    said = []
    for what, key, factor in (("time", "time_ratio", 1.5), ("memory", "memory_ratio", 1.2)):
        off = [max(float(one[key]), 1 / float(one[key])) for one in rows]
        near = sum(ratio <= factor for ratio in off)
        said.append(
            f"{what}: half of the predictions are within a factor {statistics.median(off):.2f}, {near} of {len(off)} "
            f"within {factor}, the worst is off by {max(off):.2f}"
        )
    return said


if __name__ == "__main__":
    sys.exit(main())
