"""A process that takes training steps when asked: what benchmarks.step_time compares.

    python -m benchmarks.step_worker BACKEND MODEL FOLDER --batch 32 --cpu 0 --seed 1

It says what it runs on, then reads a number of steps from each line of its input, takes one step that is not timed
(others ran meanwhile, and the caches are theirs) and that many that are, and prints the times. Its input's end is its
own. It imports what a device would: with torch as the backend torch alone, with the others no torch.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_agent.runtimes.engine import Array

TORCH = "torch"
# So small that thousands of steps on one batch stay what early steps are: once a network knows its batch by heart its
# gradients are denormal numbers, which processors are slow at.
LEARNING_RATE, MOMENTUM = 1e-5, 0.9
NEVER = 1 << 40

Take = Callable[[], object]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend")
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--cpu", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    chosen = parser.parse_args()
    os.sched_setaffinity(0, {chosen.cpu})
    with np.load(chosen.folder.with_suffix(".npz")) as data:
        x, y = data["x"][: chosen.batch], data["y"][: chosen.batch]
    if chosen.backend == TORCH:
        take, library, version = _torch(chosen.model, chosen.seed, x, y)
    else:
        take, library, version = _ours(chosen.backend, chosen.folder, chosen.seed, x, y)
        assert TORCH not in sys.modules, f"{chosen.backend}: torch was imported, so its memory would be counted"
    _say({"python": platform.python_version(), "numpy": np.__version__, library: version})
    for line in sys.stdin:
        take()
        _say({"ns": [_timed(take) for _ in range(int(line))], "peak_mib": peak_mib()})
    return 0


def peak_mib() -> float:
    """The most that this program has had resident so far. What getrusage calls that begins with its parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def _torch(model: str, seed: int, x: Array, y: Array) -> tuple[Take, str, str]:
    import torch

    from benchmarks.zoo import spec_of

    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    spec = spec_of(model, seed=seed)
    module, loss, inputs, targets = spec.module.train(), spec.loss_function, torch.from_numpy(x), torch.from_numpy(y)
    optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)

    def take() -> None:
        optimizer.zero_grad()
        loss(module(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return take, TORCH, torch.__version__


def _ours(backend: str, folder: Path, seed: int, x: Array, y: Array) -> tuple[Take, str, str]:
    from edge_agent.data import Dataset
    from edge_agent.runtimes.backends import choose
    from edge_agent.runtimes.onnx_session import import_onnxruntime
    from edge_agent.runtimes.optimizers import OptimizerSettings
    from edge_agent.runtimes.parameters import initial_model
    from edge_agent.training import LocalTraining, Recipe
    from protocol.bundle import open_bundle

    bundle = open_bundle(folder)
    optimizer = OptimizerSettings(name="sgd", momentum=MOMENTUM)
    recipe = Recipe(NEVER, 0, len(x), LEARNING_RATE, optimizer, seed)
    engine = choose(bundle, backend).engine
    training = LocalTraining(engine, bundle.manifest, Dataset((x,), (y,)), recipe, initial_model(bundle))
    return training.step, "onnxruntime", import_onnxruntime().__version__


def _timed(take: Take) -> int:
    started = time.perf_counter_ns()
    take()
    return time.perf_counter_ns() - started


def _say(facts: dict[str, object]) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    sys.exit(main())
