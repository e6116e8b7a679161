"""Times of probes on this machine: the runtime's operators, and the agent's own arithmetic between two calls of it."""

import math
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edge_agent.calibration import medley
from edge_agent.calibration.probes import PROBES, Probe
from edge_agent.data import Dataset
from edge_agent.runtimes import onnx_session
from edge_agent.runtimes.engine import Array, Batch, Evaluation, StepResult, Vector
from edge_agent.runtimes.optimizers import OptimizerName, OptimizerSettings
from edge_agent.runtimes.work import CACHE_BYTES, LAST_CACHE_BYTES, Work, work
from edge_agent.training import LocalTraining, Recipe
from protocol.manifest import FORMAT, Backend, Inference, Manifest, Port, Tensor, Variant

# Of all probes, one after the other: a machine that changes its pace does so for all of them alike. Long enough for a
# median, short enough for a calibration of seconds.
ROUNDS = 6
# In each round, for each probe, with what lies around it. The first call is not timed.
BUDGET_S, MOST = 0.005, 20
_BYTES = 4
# Of the optimisers' probes: vectors of one cache line, and of about a megabyte.
FEW, MANY = 16, 250_000

Clock = Callable[[], float]
Take = Callable[[], object]
# Gone through between two calls, as other operators of a step do, so that what a probe reads lies where it would: in a
# core's own cache, in the last one, or in memory. What that costs besides by the byte is not the operator's.
_AROUND: Mapping[str, int] = {"": CACHE_BYTES // 2, "far": LAST_CACHE_BYTES // 2, "memory": 4 * LAST_CACHE_BYTES}
# A probe of fewer bytes shows nothing of it.
_LARGE_BYTES = 1 << 18


def clock_for(threads: int) -> Clock:
    """One thread's time on its processor, which other work on the machine does not change; of several, the wall's."""
    return time.thread_time if threads == 1 else time.perf_counter


def timed(takes: Sequence[Take], around: Sequence[int], clock: Clock, between: Take | None = None) -> list[float]:
    """Seconds that each needs, called in turns: the median. around: bytes to go through before each call of each.
    between: called after each round."""
    others = np.zeros(max(around) // 4, np.float32)
    found: list[list[float]] = [[] for _ in takes]
    for _ in range(ROUNDS):
        for take, size, times in zip(takes, around, found, strict=True):
            times += _some(take, others[: size // 4], clock)
        if between is not None:
            between()
    return [float(np.median(times)) for times in found]


def _some(take: Take, others: Vector, clock: Clock) -> list[float]:
    found: list[float] = []
    take()
    until = clock() + BUDGET_S
    while not found or (clock() < until and len(found) < MOST):
        np.add(others, 1.0, out=others)
        started = clock()
        take()
        found.append(clock() - started)
    return found


def operators(threads: int, between: Take | None = None) -> tuple[list[Work], list[float]]:
    """The work and the time of every probe."""
    rng = np.random.default_rng(0)
    works: list[Work] = []
    takes: list[Take] = []
    around: list[int] = []
    for probe in PROBES:
        take = runner(probe, threads, rng)
        for place, size in _AROUND.items():
            one = work(probe.operation, size)
            if place and _BYTES * sum(math.prod(s) for s in (*probe.inputs, probe.output)) < _LARGE_BYTES:
                continue
            start = {f"{place} start": 1.0} if place else {}
            works.append({"run": 1.0, **start, **{unit: probe.times * amount for unit, amount in one.items()}})
            takes.append(take)
            around.append(size)
    for verse in medley.MEDLEYS:
        many = {"run": 1.0}
        for operation in medley.operations(verse):
            for unit, amount in work(operation, _AROUND[""]).items():
                many[unit] = many.get(unit, 0.0) + amount
        works.append(many)
        takes.append(bound(medley.graph(verse), medley.arrays(rng), medley.output(), threads))
        around.append(_AROUND["far"])
    return works, timed(takes, around, clock_for(threads), between)


def updates(threads: int) -> Mapping[str, float]:
    """Seconds a parameter by optimiser, and of a step without any work, by the name `step`."""
    names: tuple[OptimizerName, ...] = ("sgd", "adamw")
    takes = [_training(n, name, threads).step for name in names for n in (FEW, MANY)]
    few, many, few_too, many_too = timed(takes, [_AROUND["far"]] * len(takes), clock_for(threads))
    sgd, adamw = (many - few) / (MANY - FEW), (many_too - few_too) / (MANY - FEW)
    return {"sgd": max(0.0, sgd), "adamw": max(0.0, adamw), "step": min(few, few_too)}


def runner(probe: Probe, threads: int, rng: np.random.Generator) -> Take:
    """One call of a probe's graph."""
    return bound(probe.graph(), probe.arrays(rng), np.empty(probe.output, probe.result), threads)


def bound(graph: bytes, arrays: Sequence[Array], out: Array, threads: int) -> Take:
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
