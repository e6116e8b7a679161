"""Runtime, data and model made ready for a task, kept between tasks of one bundle, let go when idle."""

import ctypes
import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.data import Dataset, DataSettings, load
from edge_agent.probes import recall, remember
from edge_agent.runtimes.backends import Choice, Selection, UnusableError, open_selected, runtime_name, select
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.settings import TrainingSettings
from edge_agent.training import LocalTraining, Recipe, TrainingState
from protocol.bundle import Bundle
from protocol.disk import LOCAL, Disk
from protocol.errors import ConfigurationError
from protocol.manifest import Manifest
from protocol.messages import Task
from protocol.records import write_record
from sparse.codecs import Shared
from sparse.dynamic import SparseRule
from sparse.masks import Mask

log = logging.getLogger("edge-agent")

# The mask is the coordinator's: it comes with the task, and nothing moves it here.
FIXED = SparseRule("static", 0.0)


@dataclass(frozen=True, slots=True)
class Bench:
    """All that the tasks of one variant of a bundle share. manifest: as the variant sees it."""

    digest: bytes
    manifest: Manifest
    variant: str
    choice: Choice
    dataset: Dataset


class Workshop:
    """Makes ready what tasks are done with. Nothing heavy is imported or loaded before the first one. clock: in
    seconds, for what steps take."""

    def __init__(
        self,
        data: DataSettings,
        base: Path,
        state: Path,
        training: TrainingSettings,
        disk: Disk = LOCAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._data, self._base, self._state, self._training = data, base, state, training
        self._disk, self._clock = disk, clock
        self._bench: Bench | None = None
        self._failed: dict[tuple[bytes, str], dict[str, str]] = {}

    @property
    def loaded(self) -> bool:
        return self._bench is not None

    def selected(self, manifest: Manifest, bundle: bytes, variant: str) -> Selection:
        """The backend for a variant of a bundle, by manifest and digest. Raises ConfigurationError when none serves."""
        failed = dict(self._failed.get((bundle, variant), {}))
        if manifest.reference is not None:
            known = recall(self._state, bundle, _compared_by(variant), self._disk)
            failed |= {name: said for name, said in known.items() if said}
        return select(manifest, self._training.backend, variant, failed)

    def bench(self, bundle: Bundle, variant: str, model: Vector, digest: bytes) -> Bench:
        """Runtime and data for a variant of a bundle, whose manifest is as the variant sees it. Raises
        ConfigurationError when either cannot serve, and UnusableError when the selected backend cannot but there is
        another one: `selected` names it, and its files may still be missing.

        model, digest: float32[total] that the task starts from. Where it is the exported one, backends are compared
        with torch's recorded step, and what comes of it is remembered.
        """
        if self._bench is None or (self._bench.digest, self._bench.variant) != (bundle.digest, variant):
            self._bench = None
            dataset = load(self._data, bundle.manifest, self._base)
            choice = self._open(bundle, variant, model, digest)
            log.info(
                "backend=%s variant=%s examples=%d why=%r", choice.engine.name, variant, len(dataset), choice.reason
            )
            self._bench = Bench(bundle.digest, bundle.manifest, variant, choice, dataset)
        return self._bench

    def _open(self, bundle: Bundle, variant: str, model: Vector, digest: bytes) -> Choice:
        selected = self.selected(bundle.manifest, bundle.digest, variant)
        try:
            return self._compared(bundle, variant, selected, model, digest)
        except UnusableError as error:
            self._failed.setdefault((bundle.digest, variant), {})[error.backend] = str(error)
            try:
                self.selected(bundle.manifest, bundle.digest, variant)
            except ConfigurationError as none_left:
                # The next task tries again: what was missing may have been installed.
                del self._failed[bundle.digest, variant]
                raise error.kind(str(none_left)) from error
            raise

    def _compared(self, bundle: Bundle, variant: str, selected: Selection, model: Vector, digest: bytes) -> Choice:
        reference, threads = bundle.manifest.reference, self._training.threads
        if reference is None:
            return open_selected(bundle, selected, threads, variant)
        known = recall(self._state, bundle.digest, _compared_by(variant), self._disk)
        verdicts = dict(known)
        start = model if digest.hex() == reference.model else None
        try:
            return open_selected(bundle, selected, threads, variant, model=start, verdicts=verdicts)
        finally:
            # Also when it was not usable: in a later round there is nothing to compare with.
            if verdicts != known:
                remember(self._state, bundle.digest, _compared_by(variant), verdicts, self._disk)

    def begin(
        self,
        bench: Bench,
        recipe: Recipe,
        model: Vector,
        shared: Shared | None = None,
        resume: TrainingState | None = None,
    ) -> LocalTraining:
        """The local steps of a task's recipe, from float32[total] `model`, or on from what `resume` says.

        shared: of a task under a mask, which `model` was masked by.
        """
        return LocalTraining(
            bench.choice.engine,
            bench.manifest,
            bench.dataset,
            recipe,
            model,
            bench.variant,
            self._clock,
            _mask_of(shared),
            resume,
        )

    def unload(self) -> None:
        """Lets go of runtime and data, so that an idle agent is small again."""
        self._bench = None
        gc.collect()
        _return_memory()


def recipe_of(task: Task, shared: Shared | None = None) -> Recipe:
    """How a task asks to be trained. Raises ValueError on a bad optimiser.

    shared: of a task under a mask, by which its model is masked.
    """
    return Recipe(
        steps=task.local_steps,
        epochs=task.local_epochs,
        batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        optimizer=OptimizerSettings(**write_record(task.optimizer)),
        seed=task.seed,
        sparse=None if _mask_of(shared) is None else FIXED,
        mean_gradient=shared is not None and shared.report > 0,
    )


def _mask_of(shared: Shared | None) -> Mask | None:
    # A mask that keeps everything is none, and costs nothing.
    return None if shared is None or shared.mask.all() else shared.mask


def _compared_by(variant: str) -> str:
    """What a verdict is of, besides the bundle: each variant has graphs of its own."""
    return f"{runtime_name()}, variant {variant}"


def _return_memory() -> None:
    # glibc keeps freed memory for itself; an idle agent gives it back to the board. Other C libraries lack this call.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
