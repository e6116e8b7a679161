"""Runtime, data and model made ready for a task, kept between tasks of one bundle, let go when idle."""

import ctypes
import gc
import logging
from dataclasses import dataclass
from pathlib import Path

from edge_agent.data import Dataset, DataSettings, load
from edge_agent.probes import recall, remember
from edge_agent.runtimes.backends import Choice, choose, runtime_name
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.training import LocalTraining, Recipe
from protocol.bundle import Bundle
from protocol.manifest import Manifest
from protocol.messages import Task
from protocol.records import write_record

log = logging.getLogger("edge-agent")


@dataclass(frozen=True, slots=True)
class Bench:
    """All that the tasks of one bundle share."""

    digest: bytes
    manifest: Manifest
    choice: Choice
    dataset: Dataset


class Workshop:
    """Makes local training out of tasks. Nothing heavy is imported or loaded before the first one."""

    def __init__(self, data: DataSettings, base: Path, state: Path, backend: str, threads: int) -> None:
        self._data, self._base, self._state, self._backend, self._threads = data, base, state, backend, threads
        self._bench: Bench | None = None

    @property
    def loaded(self) -> bool:
        return self._bench is not None

    def bench(self, bundle: Bundle, model: Vector, digest: bytes) -> Bench:
        """Runtime and data for a bundle. Raises ConfigurationError when either cannot serve.

        model, digest: float32[total] that the task starts from. Where it is the exported one, backends are compared
        with torch's recorded step, and what comes of it is remembered.
        """
        if self._bench is None or self._bench.digest != bundle.digest:
            self._bench = None
            dataset = load(self._data, bundle.manifest, self._base)
            choice = self._choose(bundle, model, digest)
            log.info("backend=%s examples=%d why=%r", choice.engine.name, len(dataset), choice.reason)
            self._bench = Bench(bundle.digest, bundle.manifest, choice, dataset)
        return self._bench

    def _choose(self, bundle: Bundle, model: Vector, digest: bytes) -> Choice:
        reference = bundle.manifest.reference
        if reference is None:
            return choose(bundle, self._backend, self._threads)
        runtime = runtime_name()
        known = recall(self._state, bundle.digest, runtime)
        verdicts = dict(known)
        start = model if digest.hex() == reference.model else None
        try:
            return choose(bundle, self._backend, self._threads, model=start, verdicts=verdicts)
        finally:
            # Also when none was usable: in a later round there is nothing to compare with.
            if verdicts != known:
                remember(self._state, bundle.digest, runtime, verdicts)

    def begin(self, bench: Bench, task: Task, model: Vector) -> LocalTraining:
        """The local steps that a task asks for, from float32[total] `model`. Raises ValueError on a bad optimiser."""
        recipe = Recipe(
            steps=task.local_steps,
            epochs=task.local_epochs,
            batch_size=task.batch_size,
            learning_rate=task.learning_rate,
            optimizer=OptimizerSettings(**write_record(task.optimizer)),
            seed=task.seed,
        )
        return LocalTraining(bench.choice.engine, bench.manifest, bench.dataset, recipe, model)

    def unload(self) -> None:
        """Lets go of runtime and data, so that an idle agent is small again."""
        self._bench = None
        gc.collect()
        _return_memory()


def _return_memory() -> None:
    # glibc keeps freed memory for itself; an idle agent gives it back to the board. Other C libraries lack this call.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
