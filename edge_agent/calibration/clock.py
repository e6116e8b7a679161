"""Times of probes on this machine: the runtime's operators, and the agent's own arithmetic between two calls of it."""

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edge_agent.calibration import medley
from edge_agent.calibration.probes import PROBES, Probe
from edge_agent.data import Dataset
from edge_agent.runtimes import onnx_session
from edge_agent.runtimes.engine import Array, Batch, Evaluation, StepResult, Vector
from edge_agent.runtimes.optimizers import OptimizerName, OptimizerSettings
from edge_agent.runtimes.work import CACHE_BYTES, Work, work
from edge_agent.training import LocalTraining, Recipe
from protocol.manifest import FORMAT, Backend, Inference, Manifest, Port, Tensor, Variant

# For each probe: long enough to find it undisturbed, short enough for a calibration of seconds.
BUDGET_S, FEWEST, MOST, WARM_UP = 0.03, 5, 200, 2
# Of the optimisers' probes: vectors of one cache line, and of about a megabyte.
FEW, MANY = 16, 250_000

Clock = Callable[[], float]
# Gone through between two calls: in a step other operators run in between, and what one reads is no longer near.
_others = np.zeros(2 * CACHE_BYTES // 4, np.float32)


def clock_for(threads: int) -> Clock:
    """One thread's time on its processor, which other work on the machine does not change; of several, the wall's."""
    return time.thread_time if threads == 1 else time.perf_counter


def timed(take: Callable[[], object], clock: Clock) -> float:
    """Seconds that `take` needs when it has been called before, and other work since; the fastest tenth, which is what
    it takes where nothing else wants the processor and its caches."""
    for _ in range(WARM_UP):
        take()
    found: list[float] = []
    while len(found) < FEWEST or (sum(found) < BUDGET_S and len(found) < MOST):
        np.add(_others, 1.0, out=_others)
        started = clock()
        take()
        found.append(clock() - started)
    return float(np.quantile(found, 0.1))


def operators(threads: int) -> tuple[list[Work], list[float]]:
    """The work and the time of every probe."""
    rng, clock = np.random.default_rng(0), clock_for(threads)
    works: list[Work] = []
    seconds: list[float] = []
    for probe in PROBES:
        one = work(probe.operation)
        works.append({"run": 1.0, **{unit: probe.times * amount for unit, amount in one.items()}})
        seconds.append(timed(runner(probe, threads, rng), clock))
    for verse in medley.MEDLEYS:
        many = {"run": 1.0}
        for operation in medley.operations(verse):
            for unit, amount in work(operation).items():
                many[unit] = many.get(unit, 0.0) + amount
        works.append(many)
        take = bound(medley.graph(verse), medley.arrays(rng), medley.output(), threads)
        seconds.append(timed(take, clock))
    return works, seconds


def updates(threads: int) -> Mapping[str, float]:
    """Seconds a parameter by optimiser, and of a step without any work, by the name `step`."""
    clock = clock_for(threads)
    found = {}
    for name in ("sgd", "adamw"):
        few, many = (timed(_training(n, name, threads).step, clock) for n in (FEW, MANY))
        found[name] = max(0.0, (many - few) / (MANY - FEW))
        found["step"] = min(few, found.get("step", few))
    return found


def runner(probe: Probe, threads: int, rng: np.random.Generator) -> Callable[[], object]:
    """One call of a probe's graph."""
    return bound(probe.graph(), probe.arrays(rng), np.empty(probe.output, probe.result), threads)


def bound(graph: bytes, arrays: Sequence[Array], out: Array, threads: int) -> Callable[[], object]:
    """One call of the runtime, its inputs and output bound as the portable backend binds them."""
    session = onnx_session.session_of(graph, "probe", threads)
    binding = session.io_binding()
    for i, value in enumerate(arrays):
        binding.bind_input(f"x{i}", "cpu", 0, value.dtype.type, value.shape, value.ctypes.data)
    binding.bind_output("y", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)

    def run() -> tuple[object, ...]:
        session.run_with_iobinding(binding)
        # What is bound must live as long as the binding.
        return arrays, out

    return run


class _Still:
    """An engine that computes nothing: a port bound, one operator run, a gradient that is always the same."""

    name = "none"

    def __init__(self, parameters: int, threads: int) -> None:
        probe = Probe("Add", ((1, 1), (1, 1)), (1, 1))
        self._run = runner(probe, threads, np.random.default_rng(0))
        self._gradient, self._buffers = np.full(parameters, 1e-3, np.float32), np.zeros(0, np.float32)

    def step(self, model: Vector, batch: Batch, seed: int) -> StepResult:
        """As the portable backend's, but for the graph."""
        self._run()
        return StepResult(0.0, self._gradient, self._buffers)

    def evaluate(self, model: Vector, batch: Batch) -> Evaluation:
        """Nothing is evaluated."""
        return Evaluation(0.0, {}, len(batch))


def _training(parameters: int, name: OptimizerName, threads: int) -> LocalTraining:
    manifest = Manifest(
        format=FORMAT,
        line="probe",
        version=1,
        tensors=(Tensor("w", (parameters,), 0, "parameter"),),
        inputs=(Port("x", (1,), "float32"),),
        targets=(),
        outputs=(),
        loss="none",
        metrics=(),
        files=(),
        variants=(Variant("full", {"none": Backend({}, "nothing")}),),
        inference=Inference("", {}),
        parity={},
    )
    optimizer = OptimizerSettings(name, momentum=0.9 if name == "sgd" else 0.0)
    recipe = Recipe(1 << 40, 0, 1, 1e-3, optimizer, 0)
    dataset = Dataset((np.zeros((1, 1), np.float32),), ())
    return LocalTraining(_Still(parameters, threads), manifest, dataset, recipe, np.zeros(parameters, np.float32))
