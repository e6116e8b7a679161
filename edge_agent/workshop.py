"""Runtime, data and model made ready for a task, kept between tasks of one bundle, let go when idle."""

import ctypes
import gc
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.data import Dataset, DataSettings, load
from edge_agent.datasets.listing import Mark
from edge_agent.datasets.pinning import Pinned
from edge_agent.held_out import divided, measured
from edge_agent.momentum import settings_of
from edge_agent.personal.at_work import personalise
from edge_agent.personal.settings import OFF, PersonalSettings
from edge_agent.probes import compared_by, recall, remember
from edge_agent.runtimes.backends import Choice, Selection, open_selected, runtime_name
from edge_agent.runtimes.engine import Engine, Vector
from edge_agent.scores import ScoreEngine, first_scores
from edge_agent.settings import TrainingSettings
from edge_agent.training import LocalTraining, Recipe, TrainingState
from protocol.bundle import Bundle
from protocol.disk import LOCAL, Disk
from protocol.manifest import Manifest
from protocol.messages import HeldOut, Task
from sparse.codecs import Shared
from sparse.dynamic import SparseRule
from sparse.masks import Mask

log = logging.getLogger("edge-agent")

# The mask is the coordinator's: it comes with the task, and nothing moves it here.
FIXED = SparseRule("static", 0.0)


@dataclass(frozen=True, slots=True)
class Bench:
    """All that the tasks of one variant of a bundle share. manifest: as the variant sees it. selected: the backend's
    name, which the engine's own is but in tests. held_out: of the device's data, what is not in `dataset`."""

    digest: bytes
    manifest: Manifest
    variant: str
    selected: str
    choice: Choice
    dataset: Dataset
    data: Mark
    held_out: Dataset | None = None


class Workshop:
    """Makes ready what tasks are done with. Nothing heavy is imported or loaded before the first one. clock: in
    seconds, for what steps take. wall: the system's clock, by which files are dated."""

    def __init__(
        self,
        data: DataSettings,
        base: Path,
        state: Path,
        training: TrainingSettings,
        disk: Disk = LOCAL,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        personal: PersonalSettings = OFF,
    ) -> None:
        self._data, self._base, self._state, self._training = data, base, state, training
        self._personal = personal
        self._disk, self._clock, self._wall = disk, clock, wall
        self._pinned = Pinned(data, base, state / "blobs", disk)
        self._bench: Bench | None = None

    def bench(self, bundle: Bundle, variant: str, selected: Selection, model: Vector, digest: bytes) -> Bench:
        """Runtime and data for a variant of a bundle, whose manifest is as the variant sees it. Raises
        ConfigurationError when the data cannot serve, and UnusableError when the selected backend cannot.

        model, digest: float32[total] that the task starts from. Where it is the exported one, backends are compared
        with torch's recorded step, and what comes of it is remembered.
        """
        listing = self._pinned.listing(digest, self._wall())
        wanted, held = (bundle.digest, variant, selected.name, listing.mark), self._bench
        if held is None or (held.digest, held.variant, held.selected, held.data) != wanted:
            self._bench = held = None
            dataset = load(self._data, bundle.manifest, self._base, listing)
            dataset, held_out = divided(dataset, self._data, bundle.manifest, self._base)
            if dataset.left_out.count:
                log.warning("data left out %s", dataset.left_out)
            choice = self._compared(bundle, variant, selected, model, digest)
            log.info(
                "backend=%s variant=%s examples=%d why=%r", choice.engine.name, variant, len(dataset), choice.reason
            )
            what = (bundle.digest, bundle.manifest, variant, selected.name)
            self._bench = held = Bench(*what, choice, dataset, listing.mark, held_out)
        self._pinned.keep(digest, listing)
        return held

    def _compared(self, bundle: Bundle, variant: str, selected: Selection, model: Vector, digest: bytes) -> Choice:
        reference, threads = bundle.manifest.reference, self._training.threads
        if reference is None:
            return open_selected(bundle, selected, threads, variant)
        by = compared_by(runtime_name(), variant)
        known = recall(self._state, bundle.digest, by, self._disk)
        verdicts = dict(known)
        start = model if digest.hex() == reference.model else None
        try:
            return open_selected(bundle, selected, threads, variant, model=start, verdicts=verdicts)
        finally:
            # Also when it was not usable: in a later round there is nothing to compare with.
            if verdicts != known:
                remember(self._state, bundle.digest, by, verdicts, self._disk)

    def begin(
        self,
        bench: Bench,
        recipe: Recipe,
        model: Vector,
        shared: Shared | None = None,
        resume: TrainingState | None = None,
        momentum: Vector | None = None,
        chances: Vector | None = None,
    ) -> LocalTraining:
        """The local steps of a task's recipe, from float32[total] `model`, or on from what `resume` says.

        shared: of a task under a mask, which `model` was masked by. momentum: float32[n] from rounds before. chances:
        float32[d], where a mask is learnt over `model`; what is trained is then scores.
        """
        engine: Engine = bench.choice.engine
        if chances is not None:
            engine, model = ScoreEngine(engine, bench.manifest, model), first_scores(bench.manifest, chances)
        return LocalTraining(
            engine,
            bench.manifest,
            bench.dataset,
            recipe,
            model,
            bench.variant,
            self._clock,
            _mask_of(shared),
            resume,
            momentum,
        )

    def tried(self, bench: Bench, model: Vector) -> HeldOut | None:
        """How float32[total] `model` does on what is held out; None where nothing is."""
        if bench.held_out is None:
            return None
        # By the backend that trains: of the others the device has no files.
        return measured(lambda batch: bench.choice.engine.evaluate(model, batch), bench.held_out)

    def personalised(
        self, bench: Bench, bundle: Bundle, task: Task, model: Vector, said: HeldOut | None
    ) -> HeldOut | None:
        """Makes this device's own head of float32[total] `model`, if it is to have one. said: of the model, to which is
        added how the head does, if that is to be told."""
        if not self._personal.enabled:
            return said
        opened, data = (bundle, bench.variant), (bench.dataset, bench.held_out)
        return personalise(self._personal, self._state, task, opened, model, data, said, self._disk)

    def finished(self) -> None:
        """The task is over: the next one may have other data."""
        self._pinned.release()

    def unload(self) -> None:
        """Lets go of runtime and data, so that an idle agent is small again."""
        self._bench = None
        gc.collect()
        return_memory()


def recipe_of(task: Task, shared: Shared | None = None) -> Recipe:
    """How a task asks to be trained. Raises ValueError on a bad optimiser.

    shared: of a task under a mask, by which its model is masked.
    """
    return Recipe(
        steps=task.local_steps,
        epochs=task.local_epochs,
        batch_size=task.batch_size,
        learning_rate=task.learning_rate,
        optimizer=settings_of(task.optimizer),
        seed=task.seed,
        sparse=None if _mask_of(shared) is None else FIXED,
        mean_gradient=shared is not None and shared.report > 0,
        chances=None if task.chances is None else task.chances.digest.hex(),
    )


def _mask_of(shared: Shared | None) -> Mask | None:
    # A mask that keeps everything is none, and costs nothing.
    return None if shared is None or shared.mask.all() else shared.mask


def return_memory() -> None:
    """Gives what was freed back to the system."""
    # glibc keeps freed memory for itself; an idle agent gives it back to the board. Other C libraries lack this call.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
