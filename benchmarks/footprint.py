"""What it takes to train at all: a running agent's memory and wake-ups; disk and time of an environment, against torch.

    python -m benchmarks.footprint --json                            # the agent of this environment
    python -m benchmarks.footprint --python /opt/agent/bin/python    # an agent that is installed
    python -m benchmarks.footprint --environments agent agent-ort-training torch --json

The first rows are of a running agent, idle and training: see benchmarks/agent_footprint.py for how they are counted.
With `--environments` each is made anew by venv and pip in a temporary folder, and its running agent measured too;
`install_mib` is the size of the files in its
site-packages, without pip and setuptools. `import_s` is the time of importing the training stack in a fresh process.
`first_step_s` is the wall-clock time of a process that takes one step of the two-convolution network at batch 32 and
ends: for agents `edge-agent train --steps 1`, which checks the whole bundle too; for torch a script without any
comforts. Both are medians over processes, after one that has the files read from disk; all run with one thread, pinned
to one CPU. `pss_mib` is a process' proportional set size after some steps.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from benchmarks import agent_footprint, bundles, environments
from benchmarks.environments import TORCH, Environment
from benchmarks.harness import ONE_THREAD, Row, options, progress_console, publish
from benchmarks.memory import pss_mib
from devices.datasets import PROJECT_ROOT
from protocol.command import run_command
from protocol.errors import SparsefleetError

AGENTS = ("agent", "agent-ort-training")
MODEL, BATCH = "cnn_2conv", 32
# onnxruntime is imported when a graph is first opened, so it is asked for here.
STACK = "import edge_agent.offline; from edge_agent.runtimes.onnx_session import import_onnxruntime as f; f()"
TORCH_STACK = "import numpy, torch"
REPEATS, QUICK_REPEATS = 7, 0
# By the step SETTLED every buffer is allocated; none gets to the last.
SETTLED, LAST = 30, 10_000_000


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained, and how many processes after the first each time is the median of; with 0 the first counts."""

    bundle: Path
    repeats: int

    def command(self, environment: Environment, steps: int) -> list[str]:
        data = str(bundles.data_beside(self.bundle))
        if environment.name == TORCH:
            return [str(environment.python), "-m", "benchmarks.footprint_torch", data, str(steps)]
        command = [str(environment.python), "-m", "edge_agent", "train", "--bundle", str(self.bundle), "--data", data]
        return [*command, "--steps", str(steps), "--batch-size", str(BATCH)]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.prog = "python -m benchmarks.footprint"
    names = (*AGENTS, TORCH)
    parser.add_argument("--environments", nargs="+", choices=names, default=(), help="made anew, and weighed")
    parser.add_argument(
        "--python", type=Path, default=Path(sys.executable), help="of the agent that is run (default: this one)"
    )
    parser.set_defaults(command=_run)
    return run_command(parser, None if arguments is None else list(arguments))


def _run(chosen: argparse.Namespace) -> int:
    rows: list[Row] = []
    versions: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="footprint-") as folder, Progress(console=progress_console()) as progress:
        root = Path(folder)
        sources = environments.copy_sources(PROJECT_ROOT, root / "sources")
        wanted = {name: environments.requirements(name, sources) for name in chosen.environments}
        job = progress.add_task(f"exporting {MODEL}", total=2 + 2 * len(wanted))
        bundles.write(MODEL, root / MODEL, BATCH, chosen.seed)
        task = Task(root / MODEL, QUICK_REPEATS if chosen.quick else REPEATS)
        progress.update(job, description="measuring a running agent", advance=1)
        running = agent_footprint.measure("this", chosen.python, root / MODEL, root / "this-agent", quick=chosen.quick)
        progress.advance(job)
        for name, required in wanted.items():
            progress.update(job, description=f"installing {name}")
            environment = environments.make(name, required, root / name)
            progress.update(job, description=f"measuring {name}", advance=1)
            rows.append(measure(environment, task))
            if name in AGENTS:
                agent = (name, environment.python, root / MODEL, root / f"{name}-agent")
                running += agent_footprint.measure(*agent, quick=chosen.quick)
            versions |= {f"{name}: {package}": version for package, version in environment.versions().items()}
            progress.advance(job)
    notes = ["this torch is a build for GPUs, several times as large as its build for CPUs"] * _for_gpus(versions)
    title = "What it takes to train"
    publish(running + rows, seed=chosen.seed, as_json=chosen.json, title=title, notes=notes, versions=versions)
    return 0


def _for_gpus(versions: dict[str, str]) -> bool:
    """The build for CPUs says so in its version; torch's own registry serves it, the common one does not."""
    torch = versions.get(f"{TORCH}: {TORCH}")
    return torch is not None and not torch.endswith("+cpu")


def measure(environment: Environment, task: Task) -> Row:
    """The row of an environment that is ready."""
    stack = TORCH_STACK if environment.name == TORCH else STACK
    # What a process prints itself leaves out the start of its interpreter.
    timed = f"import time; t = time.perf_counter(); {stack}; print(time.perf_counter() - t)"
    importing = [str(environment.python), "-c", timed]
    first_step = task.command(environment, 1)
    return {
        "environment": environment.name,
        "install_mib": round(environment.size_mib(), 1),
        "import_s": round(_median(lambda: float(_ended(importing, environment, task)), task.repeats), 3),
        "first_step_s": round(_median(lambda: _wall_s(first_step, environment, task), task.repeats), 3),
        "pss_mib": round(_settled_mib(environment, task), 1),
    }


def _median(once: Callable[[], float], repeats: int) -> float:
    first = once()
    return statistics.median(once() for _ in range(repeats)) if repeats else first


def _wall_s(command: Sequence[str], environment: Environment, task: Task) -> float:
    started = time.perf_counter()
    _ended(command, environment, task)
    return time.perf_counter() - started


def _ended(command: Sequence[str], environment: Environment, task: Task) -> str:
    """What the command printed. Raises SparsefleetError if it failed."""
    process = _start(command, environment, task)
    said, complaint = process.communicate()
    _check(process, environment, complaint)
    return said


def _settled_mib(environment: Environment, task: Task) -> float:
    process = _start(task.command(environment, LAST), environment, task)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(f"step {SETTLED:4d} "):
                mib = pss_mib(process.pid)
                assert mib is not None, "a process that is not waited for keeps its entry"
                return mib
    finally:
        process.kill()
        _, complaint = process.communicate()
    raise SparsefleetError(f"{environment.name}: ended before step {SETTLED}: {complaint.strip()[-500:]}")


def _start(command: Sequence[str], environment: Environment, task: Task) -> subprocess.Popen[str]:
    cpu = max(os.sched_getaffinity(0))
    return subprocess.Popen(
        ("taskset", "--cpu-list", str(cpu), *command),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # The yardstick is in this source tree; an agent must be the one that was installed.
        cwd=PROJECT_ROOT if environment.name == TORCH else task.bundle.parent,
        env={**os.environ, **ONE_THREAD},
        text=True,
    )


def _check(process: subprocess.Popen[str], environment: Environment, complaint: str) -> None:
    if process.returncode:
        raise SparsefleetError(f"{environment.name}: exit code {process.returncode}: {complaint.strip()[-500:]}")


if __name__ == "__main__":
    sys.exit(main())
