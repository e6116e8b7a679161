"""How far `fleet-export plan` is off: predictions for the zoo on this machine, beside what fresh processes measure.

    python -m benchmarks.plan                             # the whole zoo, batches of 1, 8 and 32
    python -m benchmarks.plan --quick --json
    python -m benchmarks.plan --models lstm --batches 4

For each model this machine is calibrated and the model measured three times in turn, and the fastest of either counts:
a shared machine changes its pace by a factor of two from one second to the next. `predicted_ms` and `measured_ms` are a
thread's time on the processor for a step with SGD and momentum, in the fastest tenth of the steps: what it takes where
nothing else runs (`median_ms` is that of half of them). `predicted_mib` and `measured_mib` are the most that the
process has resident, packing of an update included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.progress import Progress

from benchmarks import bundles
from benchmarks.harness import ONE_THREAD, Row, options, progress_console, publish
from benchmarks.zoo import ZOO
from devices.datasets import PROJECT_ROOT
from export.plan.command import THIS, device_of
from export.plan.prediction import Plan, Wanted, predict
from protocol.bundle import Bundle
from protocol.command import run_command
from protocol.errors import SparsefleetError

QUICK_MODELS, QUICK_BATCHES, BATCHES = ("cnn_1d", "cnn_2conv"), (8,), (1, 8, 32)
ROUNDS = 3
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
    with tempfile.TemporaryDirectory(prefix="plan-") as folder, Progress(console=progress_console()) as progress:
        job = progress.add_task("", total=len(models) * len(batches) * ROUNDS)
        for model in models:
            progress.update(job, description=model)
            bundle = bundles.write(model, Path(folder) / model, max(2, *batches), chosen.seed)
            rows += compare(model, bundle, batches, lambda: progress.advance(job))
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Plans and what became of them", notes=notes(rows))
    return 0


def compare(model: str, bundle: Bundle, batches: Sequence[int], tick: Callable[[], None]) -> list[Row]:
    """A row for each batch size, of the fastest calibration and the fastest measurement out of as many rounds."""
    plans: dict[int, list[Plan]] = {batch: [] for batch in batches}
    found: dict[int, list[dict[str, float]]] = {batch: [] for batch in batches}
    for _ in range(ROUNDS):
        device = device_of(THIS)
        for batch in batches:
            plans[batch].append(predict(bundle, device, Wanted(batch=batch)))
            found[batch].append(measured(bundle.root, bundles.data_beside(bundle.root), batch))
            tick()
    return [
        row(
            model,
            min(plans[batch], key=lambda plan: plan.pace.step_s),
            {key: min(one[key] for one in found[batch]) for key in found[batch][0]},
        )
        for batch in batches
    ]


def measured(bundle: Path, data: Path, batch: int) -> dict[str, float]:
    """What a fresh process shows: ms, median_ms, wall_ms and peak_mib."""
    command = [sys.executable, "-m", "benchmarks.plan_worker", str(bundle), str(data), "--batch", str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env={**os.environ, **ONE_THREAD})
    if done.returncode != 0:
        raise SparsefleetError(f"{bundle.name}, batch {batch}: {done.stderr.strip()[-500:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def row(model: str, plan: Plan, found: dict[str, float]) -> dict[str, Any]:
    milliseconds, mebibytes = 1e3 * plan.pace.step_s, plan.memory.peak / _MIB
    return {
        "model": model,
        "batch": plan.wanted.batch,
        "predicted_ms": round(milliseconds, 3),
        "measured_ms": round(found["ms"], 3),
        "time_ratio": round(milliseconds / found["ms"], 3),
        "predicted_mib": round(mebibytes, 1),
        "measured_mib": round(found["peak_mib"], 1),
        "memory_ratio": round(mebibytes / found["peak_mib"], 3),
        "median_ms": round(found["median_ms"], 3),
        "unknown": plan.pace.unknown,
        "guessed": " ".join(plan.pace.guessed),
    }


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
