"""What a shared mask costs a fleet and saves it: accuracy and bytes, beside the dense fleet, with real processes.

    python -m benchmarks.fleet_mask --json                        # three seeds, which takes some minutes
    python -m benchmarks.fleet_mask --plot docs/mask_feedback.svg # one seed, and the figure
    python -m benchmarks.fleet_mask --quick

Every fleet has the same people's data, split alike, and the same rounds and learning rates. `mask` sends float16 values
on the mask and reports; `mask, no reports` is the same without them, so that what is left out stays as it was.
Accuracy is that of the last model, masked, on people held out; bytes are those of topics and payloads as the senders
counted them. The figure shows how much of the mask each refresh changed, and one weight that was pruned and came back.
"""

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress

from benchmarks.federation import Measured, _dataset, _export, _measure, _plan, _prepare
from benchmarks.harness import Row, options, progress_console, publish
from benchmarks.mask_figure import draw, history
from devices.workspace import BUNDLE
from protocol.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Fleet:
    """One way to train. sparsity: of the mask at the end, 0 for none; report_every: rounds between reports."""

    name: str
    codec: str
    sparsity: float = 0.0
    report_every: int = 0

    @property
    def section(self) -> str:
        """What coordinator.toml says of it."""
        return f"\n[sparsity]\nfinal = {self.sparsity}\nreport_every = {self.report_every}\n" if self.sparsity else ""


def fleets(sparsity: float) -> tuple[Fleet, ...]:
    """The fleets that are compared; the second has the figure."""
    return (
        Fleet("dense", "all/float16"),
        Fleet("mask", "mask/float16", sparsity, 2),
        Fleet("mask, no reports", "mask/float16", sparsity),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--seeds", type=int, help="runs of each fleet, from --seed on (default: 3; with --plot: 1)")
    parser.add_argument("--agents", type=int, default=5)
    parser.add_argument("--rounds", type=int, help="default: 20; quick: 4")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the mask's changes, as SVG")
    chosen = parser.parse_args(arguments)
    if not 0.0 < chosen.sparsity < 1.0:
        raise ConfigurationError(f"--sparsity: {chosen.sparsity} must be above 0 and below 1, for example 0.9")
    rounds = chosen.rounds or (4 if chosen.quick else 20)
    seeds = range(chosen.seed, chosen.seed + (chosen.seeds or (1 if chosen.quick or chosen.plot else 3)))
    compared = fleets(chosen.sparsity)
    name, dataset, notes = _dataset(None)
    console = progress_console()
    found: dict[str, list[Measured]] = {fleet.name: [] for fleet in compared}
    with tempfile.TemporaryDirectory(prefix="fleet-mask-") as folder:
        bundle = Path(folder) / BUNDLE
        _export(name, bundle, console)
        with Progress(console=console) as progress:
            job = progress.add_task("rounds", total=rounds * len(seeds) * len(compared))
            # Fleets in turn within a seed, so that what else the machine does falls on all alike.
            for seed in seeds:
                for fleet in compared:
                    progress.update(job, description=f"{fleet.name}, seed {seed}")
                    plan = _plan(name, chosen.agents, rounds, fleet.codec)
                    home = Path(folder) / f"{fleet.name.replace(', ', '-').replace(' ', '-')}-{seed}"
                    _prepare(home, bundle, plan, dataset, seed)
                    config = home / "coordinator.toml"
                    config.write_text(config.read_text() + fleet.section)
                    found[fleet.name].append(_measure(home, plan, lambda: progress.advance(job)))
        if chosen.plot is not None:
            draw(chosen.plot, history(Path(folder) / f"mask-{chosen.seed}" / "coordinator", bundle))
    rows = [row_of(fleet, chosen.agents, found[fleet.name]) for fleet in compared]
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="A fleet under one mask", notes=notes)
    return 0


def row_of(fleet: Fleet, agents: int, runs: Sequence[Measured]) -> Row:
    """Means over the runs; the spread is the sample's standard deviation, 0 of one run."""
    accuracies = [run.rounds[-1].accuracy for run in runs if run.rounds[-1].accuracy is not None]
    up = [sum(r.bytes_up for r in run.rounds) / (agents * len(run.rounds)) for run in runs]
    down = [sum(r.bytes_down for r in run.rounds) / (agents * len(run.rounds)) for run in runs]
    last = [run.rounds[-1] for run in runs]
    return {
        "fleet": fleet.name,
        "sparsity": fleet.sparsity,
        "codec": fleet.codec,
        "agents": agents,
        "rounds": len(runs[0].rounds),
        "seeds": len(runs),
        "accuracy_mean": float(np.mean(accuracies)),
        "accuracy_sd": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "bytes_up_per_device_round": round(statistics.mean(up)),
        "bytes_down_per_device_round": round(statistics.mean(down)),
        "bytes_up_last_round": round(statistics.mean(r.bytes_up / agents for r in last)),
        "bytes_down_last_round": round(statistics.mean(r.bytes_down / agents for r in last)),
        "seconds_per_round": round(
            statistics.mean(statistics.median(r.seconds for r in run.rounds) for run in runs), 3
        ),
    }


if __name__ == "__main__":
    sys.exit(main())
