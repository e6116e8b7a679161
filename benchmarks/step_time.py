"""How long a training step takes and how much memory it needs: torch eager against the backends of devices.

    python -m benchmarks.step_time                              # the whole zoo, batches of 1, 8 and 32
    python -m benchmarks.step_time --quick --json
    python -m benchmarks.step_time --models cnn_2conv --batches 32 --portable-python ~/stock/bin/python

What is timed is a whole step: gradient and SGD with momentum. Ours is LocalTraining.step, which also draws the batch,
looks whether all is finite and measures the metrics of the graph; torch gets the same batch ready-made and does
zero_grad, forward, backward and step. Each backend is a process of its own with one thread, all pinned to one CPU, and
takes a short block of steps in turn, in a new order every round, so that what else happens on the machine hits all
alike. `ms` is the median over all timed steps, `spread` their interquartile range divided by it, and `peak_mib` the
most that process had resident, from its start. `nodes` are those of the training graph.

Stock onnxruntime and the training wheel exclude each other in an environment. --portable-python names another one's
interpreter for the portable backend; it needs numpy and onnxruntime, and finds this source tree by itself.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rich.progress import Progress

from benchmarks import bundles
from benchmarks.harness import ONE_THREAD, Row, options, progress_console, publish
from benchmarks.step_worker import TORCH
from benchmarks.zoo import ZOO
from devices.datasets import PROJECT_ROOT
from devices.processes import exit_text, last_lines
from edge_agent.runtimes.ort_training import NAME as ORT_TRAINING
from edge_agent.runtimes.portable import NAME as PORTABLE
from protocol.bundle import Bundle
from protocol.command import run_command
from protocol.errors import ConfigurationError, SparsefleetError

BACKENDS = (TORCH, PORTABLE, ORT_TRAINING)
QUICK_MODELS, QUICK_BATCHES = ("cnn_1d", "cnn_2conv"), (1, 32)
# A block is long enough to be over its first step's cold caches, and a round short against a machine's moods.
BLOCK_S, MOST_STEPS, WARM_UP = 0.1, 100, 3
ROUNDS, QUICK_ROUNDS = 15, 3


Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured. python: the interpreter of each backend's process."""

    models: tuple[str, ...]
    batches: tuple[int, ...]
    backends: tuple[str, ...]
    python: Mapping[str, str]
    rounds: int
    seed: int


@dataclass(slots=True)
class Measured:
    """What one backend's process showed: all timed steps, in nanoseconds, and its peak in the end."""

    ns: list[int] = field(default_factory=list)
    peak_mib: float = 0.0

    @property
    def ms(self) -> float:
        return statistics.median(self.ns) / 1e6

    @property
    def spread(self) -> float:
        low, middle, high = statistics.quantiles(self.ns, n=4)
        return (high - low) / middle


class Worker:
    """The parent's end of a benchmarks.step_worker. Use it as a context manager."""

    def __init__(self, plan: Plan, backend: str, model: str, batch: int, folder: Path, cpu: int) -> None:
        self.name, self._log = f"{backend}, {model}, batch {batch}", folder.with_suffix(".log")
        command = [plan.python[backend], "-m", "benchmarks.step_worker", backend, model, str(folder)]
        command += ["--batch", str(batch), "--cpu", str(cpu), "--seed", str(plan.seed)]
        environment = {**os.environ, **ONE_THREAD}
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=PROJECT_ROOT,
                    env=environment,
                    text=True,
                )
        except OSError as error:
            raise ConfigurationError(f"{command[0]}: cannot be started ({error.strerror}); name a Python 3") from None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if error is not None:
            self._process.kill()
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def hello(self) -> dict[str, str]:
        """The versions it runs on, once it is ready."""
        versions: dict[str, str] = json.loads(self._line())
        return versions

    def take(self, steps: int, into: Measured) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        said = json.loads(self._line())
        into.ns += said["ns"]
        into.peak_mib = said["peak_mib"]

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise SparsefleetError(f"{self.name}: ended early ({exit_text(code)}):\n{last_lines(self._log)}")
        return line


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.prog = "python -m benchmarks.step_time"
    parser.add_argument("--models", nargs="+", choices=tuple(ZOO), metavar="MODEL", help=f"of {', '.join(ZOO)}")
    parser.add_argument("--batches", nargs="+", type=_batch, help="default: 1 8 32")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, help=f"default: {' '.join(BACKENDS)}")
    parser.add_argument("--rounds", type=int, help=f"of blocks (default: {ROUNDS}; quick: {QUICK_ROUNDS})")
    parser.add_argument("--portable-python", default=sys.executable, metavar="PATH", help="default: this interpreter")
    parser.set_defaults(command=_run)
    return run_command(parser, None if arguments is None else list(arguments))


def _batch(text: str) -> int:
    batch = int(text)
    if not 1 <= batch <= 1024:
        raise argparse.ArgumentTypeError(f"{batch} is outside 1..1024")
    return batch


def _run(chosen: argparse.Namespace) -> int:
    python = dict.fromkeys(BACKENDS, sys.executable) | {PORTABLE: chosen.portable_python}
    plan = Plan(
        models=tuple(chosen.models or (QUICK_MODELS if chosen.quick else ZOO)),
        batches=tuple(chosen.batches or (QUICK_BATCHES if chosen.quick else (1, 8, 32))),
        backends=tuple(b for b in BACKENDS if chosen.backends is None or b in chosen.backends),
        python=python,
        rounds=chosen.rounds or (QUICK_ROUNDS if chosen.quick else ROUNDS),
        seed=chosen.seed,
    )
    rows: list[Row] = []
    notes: list[str] = []
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="step-time-") as folder, Progress(console=progress_console()) as progress:
        job = progress.add_task("", total=len(plan.models) * (1 + len(plan.batches) * plan.rounds))
        for model in plan.models:
            progress.update(job, description=f"exporting {model}")
            root = Path(folder) / model
            bundle = bundles.write(model, root, max(2, *plan.batches), plan.seed)
            held = (TORCH, *bundle.manifest.variants[0].backends)
            notes += [f"{model}: its bundle has no graphs for {b}" for b in plan.backends if b not in held]
            progress.advance(job)
            for batch in plan.batches:
                progress.update(job, description=f"{model}, batch {batch}")
                backends = tuple(b for b in plan.backends if b in held)
                measured = _measure(plan, backends, model, batch, root, versions, lambda: progress.advance(job))
                rows += _rows(model, batch, measured, bundle)
    if not rows:
        raise ConfigurationError("; ".join(notes))
    publish(rows, seed=plan.seed, as_json=chosen.json, title="Training steps", notes=notes, versions=versions)
    return 0


def _measure(
    plan: Plan,
    backends: Sequence[str],
    model: str,
    batch: int,
    folder: Path,
    versions: dict[str, str],
    tick: Callable[[], None],
) -> dict[str, Measured]:
    """What each backend's process showed over all rounds; adds what they ran on to `versions`."""
    cpu = max(os.sched_getaffinity(0))
    with ExitStack() as stack:
        workers = {b: stack.enter_context(Worker(plan, b, model, batch, folder, cpu)) for b in backends}
        for backend, worker in workers.items():
            versions |= {f"{backend}: {name}": version for name, version in worker.hello().items()}
        return side_by_side(workers, plan.rounds, plan.seed, tick)


def side_by_side(
    workers: Mapping[Name, Worker], rounds: int, seed: int, tick: Callable[[], None]
) -> dict[Name, Measured]:
    """What workers that said hello show, each taking a block of steps in turn, in a new order every round."""
    order, names = random.Random(seed), list(workers)
    steps = {name: _steps(worker) for name, worker in workers.items()}
    measured = {name: Measured() for name in names}
    for _ in range(rounds):
        for name in order.sample(names, len(names)):
            workers[name].take(steps[name], measured[name])
        tick()
    return measured


def _steps(worker: Worker) -> int:
    """How many steps of this process make a block; it is warm afterwards."""
    worker.take(WARM_UP, warm := Measured())
    return max(2, min(MOST_STEPS, round(BLOCK_S * 1e3 / warm.ms)))


def _rows(model: str, batch: int, measured: Mapping[str, Measured], bundle: Bundle) -> list[Row]:
    torch = measured.get(TORCH)
    return [
        {
            "model": model,
            "batch": batch,
            "backend": backend,
            "ms": round(found.ms, 3),
            "spread": round(found.spread, 3),
            "ratio_to_torch": round(found.ms / torch.ms, 3) if torch is not None else None,
            "peak_mib": round(found.peak_mib, 1),
            "nodes": bundles.nodes(bundle, backend),
        }
        for backend, found in measured.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
