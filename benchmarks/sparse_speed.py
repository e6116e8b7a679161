"""What a training step costs once channels are removed: the zoo's CNNs at 1, 1/2 and 1/4 of their channels.

    python -m benchmarks.sparse_speed --json
    python -m benchmarks.sparse_speed --quick
    python -m benchmarks.sparse_speed --models ds_cnn --keep 1 0.5 --portable-python ~/stock/bin/python

Each model is exported whole and with that share of each group of channels (`fleet-export --keep-channels`), and whole
steps of the portable backend are timed as benchmarks.step_time does: a process with one thread for each share, all on
one CPU, taking blocks of steps in turn, in a new order every round. `ratio_to_dense` is of the medians. Beside what was
measured stand `parameters` and the `multiply_adds` of one example's forward pass, which promise more than is kept:
`multiply_adds_ratio` is their share of the dense model's.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from benchmarks import bundles
from benchmarks.harness import Row, options, progress_console, publish
from benchmarks.step_time import ROUNDS, Measured, Plan, Worker, side_by_side
from benchmarks.zoo import ZOO, spec_of
from edge_agent.runtimes.portable import NAME as PORTABLE
from export.pruning import Cost, cost_of, shrunk
from protocol.command import run_command
from protocol.errors import ConfigurationError

MODELS = ("cnn_1d", "cnn_2conv", "resnet8_bn", "resnet20_bn", "ds_cnn", "mobilenet_v2")
BATCHES, KEEP = (8, 32), (1.0, 0.5, 0.25)
QUICK_MODELS, QUICK_BATCHES, QUICK_ROUNDS = ("cnn_2conv",), (8,), 3
# At most this share of the dense model's time at that share of its channels.
TARGETS = {0.5: 0.45, 0.25: 0.25}


@dataclass(frozen=True, slots=True)
class Width:
    """A model with a share of its channels: its bundle's folder, what it costs on paper, its graph's nodes."""

    folder: Path
    cost: Cost
    nodes: int | None


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.prog = "python -m benchmarks.sparse_speed"
    parser.add_argument("--models", nargs="+", choices=tuple(ZOO), metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--batches", nargs="+", type=int, help="default: 8 32")
    parser.add_argument("--keep", nargs="+", type=float, default=KEEP, help="shares of channels (default: 1 0.5 0.25)")
    parser.add_argument("--rounds", type=int, help=f"of blocks (default: {ROUNDS}; quick: {QUICK_ROUNDS})")
    parser.add_argument("--portable-python", default=sys.executable, metavar="PATH", help="default: this interpreter")
    parser.set_defaults(command=_run)
    return run_command(parser, None if arguments is None else list(arguments))


def _run(chosen: argparse.Namespace) -> int:
    keep = tuple(sorted({1.0, *chosen.keep}, reverse=True))
    plan = Plan(
        models=tuple(chosen.models or (QUICK_MODELS if chosen.quick else MODELS)),
        batches=tuple(chosen.batches or (QUICK_BATCHES if chosen.quick else BATCHES)),
        backends=(PORTABLE,),
        python={PORTABLE: chosen.portable_python},
        rounds=chosen.rounds or (QUICK_ROUNDS if chosen.quick else ROUNDS),
        seed=chosen.seed,
    )
    if not all(1 <= batch <= 1024 for batch in plan.batches):
        raise ConfigurationError(f"--batches: {plan.batches} must be from 1 to 1024")
    rows: list[Row] = []
    versions: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(prefix="sparse-speed-") as folder,
        Progress(console=progress_console()) as progress,
    ):
        job = progress.add_task("", total=len(plan.models) * (len(keep) + len(plan.batches) * plan.rounds))
        for model in plan.models:
            widths = {}
            for share in keep:
                progress.update(job, description=f"exporting {model}, {share:g} of its channels")
                widths[share] = _export(model, share, Path(folder) / f"{model}-{1000 * share:.0f}", plan)
                progress.advance(job)
            for batch in plan.batches:
                progress.update(job, description=f"{model}, batch {batch}")
                measured = _measure(plan, model, batch, widths, versions, lambda: progress.advance(job))
                rows += _rows(model, batch, widths, measured)
    notes = [_missed(row) for row in rows if row["ratio_to_dense"] > TARGETS.get(row["keep"], 1.0)]
    publish(
        rows, seed=plan.seed, as_json=chosen.json, title="Steps with fewer channels", notes=notes, versions=versions
    )
    return 0


def _export(model: str, share: float, folder: Path, plan: Plan) -> Width:
    spec = spec_of(model, max(8, *plan.batches), plan.seed)
    if share < 1:
        spec = shrunk(spec, share)
    bundle = bundles.write_spec(spec, model, folder, (PORTABLE,))
    return Width(folder, cost_of(spec), bundles.nodes(bundle, PORTABLE))


def _measure(
    plan: Plan,
    model: str,
    batch: int,
    widths: Mapping[float, Width],
    versions: dict[str, str],
    tick: Callable[[], None],
) -> dict[float, Measured]:
    cpu = max(os.sched_getaffinity(0))
    with ExitStack() as stack:
        workers = {
            share: stack.enter_context(Worker(plan, PORTABLE, model, batch, width.folder, cpu))
            for share, width in widths.items()
        }
        for worker in workers.values():
            versions |= {f"{PORTABLE}: {name}": version for name, version in worker.hello().items()}
        return side_by_side(workers, plan.rounds, plan.seed, tick)


def _rows(model: str, batch: int, widths: Mapping[float, Width], measured: Mapping[float, Measured]) -> list[Row]:
    dense = widths[1.0].cost
    return [
        {
            "model": model,
            "batch": batch,
            "keep": share,
            "ms": round(found.ms, 3),
            "ratio_to_dense": round(found.ms / measured[1.0].ms, 3),
            "spread": round(found.spread, 3),
            "peak_mib": round(found.peak_mib, 1),
            "nodes": widths[share].nodes,
            **dataclasses.asdict(widths[share].cost),
            "multiply_adds_ratio": round(widths[share].cost.multiply_adds / dense.multiply_adds, 3),
        }
        for share, found in measured.items()
    ]


def _missed(row: Row) -> str:
    return (
        f"{row['model']}, batch {row['batch']}, {row['keep']:g} of the channels: {row['ratio_to_dense']} of the dense "
        f"time is over the target of {TARGETS[row['keep']]}"
    )


if __name__ == "__main__":
    sys.exit(main())
