"""A fresh agent's process that trains some steps and packs an update: what benchmarks.plan compares predictions with.

    python -m benchmarks.plan_worker BUNDLE DATA.npz --batch 32

It prints one JSON object. `peak_mib` is the most that the process had resident while it trained and packed. Then the
machine is calibrated in the same process, in turns with more steps, so that both meet the machine at the same pace,
which on a shared one changes by a factor of two from one second to the next: `profile` is what was found, and `ms` the
median of this thread's time on the processor for a step.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np

import edge_agent.daemon  # noqa: F401  (its size is the agent's, and is measured)
from edge_agent.calibration.machine import calibrate
from edge_agent.data import Dataset
from edge_agent.runtimes.backends import choose
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.runtimes.parameters import initial_model
from edge_agent.training import LocalTraining, Recipe
from protocol.bundle import open_bundle
from protocol.layout import layout_of, take
from protocol.records import write_record
from sparse.codecs import encode_update, parse_codec

NEVER = 1 << 40
# So small that many steps on one batch leave the numbers as they are early in training.
LEARNING_RATE = 1e-5
# Enough for the peak; and how long steps take their turn.
STEPS, BUDGET_S = 10, 0.1


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
    for _ in range(STEPS):
        training.step()
    layout = layout_of(bundle.manifest, "full")
    delta = np.subtract(training.result().model, initial_model(bundle))
    residual = np.zeros(layout.n_parameters, np.float32)
    moved, buffers = take(delta, layout.parameters), take(delta, layout.buffers)
    encode_update(moved, buffers, residual, parse_codec("all/float32"), layout.digest)
    peak = _peak_mib()
    times: list[float] = []
    profile = calibrate("this", between=lambda: _steps(training, times))
    facts = {"ms": 1e3 * statistics.median(times), "peak_mib": peak, "profile": write_record(profile)}
    print(json.dumps(facts))
    return 0


def _steps(training: LocalTraining, times: list[float]) -> None:
    """Some steps, the first of which finds others' data in the caches and is not timed."""
    training.step()
    until = time.thread_time() + BUDGET_S
    while True:
        started = time.thread_time()
        training.step()
        times.append(time.thread_time() - started)
        if time.thread_time() >= until:
            return


def _peak_mib() -> float:
    """What getrusage calls the peak begins with the parent's; this is of the program alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


if __name__ == "__main__":
    sys.exit(main())
