"""A fresh agent's process that trains some steps and packs an update: what benchmarks.plan compares predictions with.

    python -m benchmarks.plan_worker BUNDLE DATA.npz --batch 32

It prints one JSON object. `ms` is its thread's time on the processor for a step, of the fastest tenth of the steps
after the first two: what a step takes where nothing else runs, and what calibration measures its probes by. On a busy
machine the median (`median_ms`) is up to three times that, for others use its caches, and the clock on the wall
(`wall_ms`, the median) says what the scheduler leaves. `peak_mib` is the most that the process had resident.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import edge_agent.daemon  # noqa: F401  (its size is the agent's, and is measured)
from edge_agent.data import Dataset
from edge_agent.runtimes.backends import choose
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model
from edge_agent.training import LocalTraining, Recipe
from protocol.bundle import open_bundle
from protocol.layout import layout_of, take
from sparse.codecs import encode_update, parse_codec

NEVER = 1 << 40
# So small that many steps on one batch leave the numbers as they are early in training.
LEARNING_RATE = 1e-5
WARM_UP, FEWEST, MOST, BUDGET_S = 2, 10, 500, 1.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--backend", default="portable")
    chosen = parser.parse_args()
    bundle = open_bundle(chosen.bundle)
    with np.load(chosen.data) as data:
        dataset = Dataset((data["x"][: chosen.batch],), (data["y"][: chosen.batch],))
    assert len(dataset) == chosen.batch, f"{chosen.data} holds only {len(dataset)} examples"
    recipe = Recipe(NEVER, 0, chosen.batch, LEARNING_RATE, OptimizerSettings("sgd", momentum=0.9), 0)
    engine = choose(bundle, chosen.backend).engine
    training = LocalTraining(engine, bundle.manifest, dataset, recipe, initial_model(bundle))
    times = _times(training)
    layout = layout_of(bundle.manifest, "full")
    delta = np.subtract(training.result().model, initial_model(bundle))
    residual = np.zeros(layout.n_parameters, np.float32)
    moved, buffers = take(delta, layout.parameters), take(delta, layout.buffers)
    encode_update(moved, buffers, residual, parse_codec("all/float32"), layout.digest)
    print(json.dumps({**times, "peak_mib": _peak_mib()}))
    return 0


def _times(training: LocalTraining) -> dict[str, float]:
    """Milliseconds of a step: ms, median_ms and wall_ms."""
    for _ in range(WARM_UP):
        training.step()
    on_processor: list[float] = []
    on_wall: list[float] = []
    while len(on_wall) < FEWEST or (sum(on_processor) < BUDGET_S and len(on_wall) < MOST):
        thread, wall = time.thread_time(), time.perf_counter()
        training.step()
        on_processor.append(time.thread_time() - thread)
        on_wall.append(time.perf_counter() - wall)
    return {
        "ms": 1e3 * float(np.quantile(on_processor, 0.1)),
        "median_ms": 1e3 * statistics.median(on_processor),
        "wall_ms": 1e3 * statistics.median(on_wall),
    }


def _peak_mib() -> float:
    """What getrusage calls the peak begins with the parent's; this is of the program alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


if __name__ == "__main__":
    sys.exit(main())
