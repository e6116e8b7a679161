"""Training in the caller's thread, a few steps at a time: what the simulator uses, and what the training process runs.

Checkpoints are written here, by whoever has the state in memory.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edge_agent.assets import Assets
from edge_agent.memory import peak_mib
from edge_agent.momentum import laid_out
from edge_agent.progress import Because, Progress, clear
from edge_agent.runtimes.backends import Selection, UnusableError, refusals, runtime_name
from edge_agent.scores import under_likeliest
from edge_agent.settings import TrainingSettings
from edge_agent.trainer import Broken, Facts, Finished, Leg, News, Proven, Ready, Refused, Unusable
from edge_agent.training import DivergedError, LocalTraining, Recipe, Trained
from edge_agent.workshop import Bench, Workshop, recipe_of
from protocol.bundle import Bundle
from protocol.errors import ConfigurationError
from protocol.messages import BlobRef, HeldOut, Task
from sparse.codecs import parse_codec


@dataclass(frozen=True, slots=True)
class _Begun:
    task: Task
    selected: Selection


@dataclass(frozen=True, slots=True)
class _Opened:
    """A task with `until`, made ready for its legs."""

    task: Task
    bundle: Bundle
    bench: Bench
    recipe: Recipe


class SameProcess:
    """A `Trainer` in this process. assets: of whoever holds the task's files; replaced by who serves another's.

    peak: MiB that this process took at the most.
    """

    def __init__(
        self,
        workshop: Workshop,
        assets: Assets,
        settings: TrainingSettings,
        peak: Callable[[], float | None] = peak_mib,
    ) -> None:
        self.assets = assets
        self._workshop, self._settings, self._peak = workshop, settings, peak
        self._begun: _Begun | None = None
        self.training: LocalTraining | None = None
        self.progress: Progress | None = None
        self._held_out: HeldOut | None = None
        self._opened: _Opened | None = None
        self._leg: Leg | None = None
        self._told, self._trial_steps = False, 0

    @property
    def done(self) -> int:
        """See `Trainer.done`."""
        return 0 if self.training is None else self.training.done

    def facts(self) -> Facts:
        """See `Trainer.facts`. Loads the runtime."""
        return Facts(runtime_name(), refusals())

    def begin(self, task: Task, selected: Selection, trial_steps: int = 0) -> None:
        """See `Trainer.begin`. The next `work` prepares it."""
        self._let_go()
        self._begun, self._trial_steps = _Begun(task, selected), trial_steps

    def again(self, leg: Leg) -> None:
        """See `Trainer.again`."""
        assert self._opened is not None, "a leg of no task"
        self._leg = leg

    def work(self, budget_s: float) -> tuple[News, ...]:
        """See `Trainer.work`. What the disk or a fault of ours breaks is raised."""
        if self._begun is not None:
            begun, self._begun = self._begun, None
            return (self._prepare(begun),)
        if self._leg is not None and not self._trial_steps:
            leg, self._leg = self._leg, None
            if not leg.steps:
                return (self._measured(leg),)
            self._set_out(leg)
        if self.training is None or self._told:
            return ()
        try:
            # Also what went on from its last step, and has none to take.
            finished = self.training.advance(budget_s, self._trial_steps or None)
            proven = self._proven(self.training)
        except DivergedError as error:
            self._let_go()
            return (Broken("diverged", str(error)),)
        except ConfigurationError as error:
            # Data on the disk that changed, or went.
            self._let_go()
            return (Broken(error.reason, str(error)),)
        if finished:
            self._told = True
            if self._opened is not None and self.progress is None:
                # A trial, of which nothing is kept.
                return proven
            peak_mib = None if self._opened is not None else self._peak()
            return (*proven, Finished(self.training.result(), peak_mib, self._held_out))
        self.keep("due")
        return proven

    def _proven(self, training: LocalTraining) -> tuple[Proven, ...]:
        """Said once, after enough steps of a trial. Raises DivergedError where they left no finite model."""
        if not self._trial_steps or training.done < min(self._trial_steps, training.total_steps):
            return ()
        self._trial_steps = 0
        if not np.isfinite(training.live_state().model).all():
            raise DivergedError(f"step {training.done}: the model that it left is not finite throughout")
        return (Proven(training.done),)

    def wait_s(self) -> float:
        """See `Trainer.wait_s`."""
        return 0.0 if self.busy else float("inf")

    @property
    def busy(self) -> bool:
        """Whether there is something to do."""
        due = self._begun is not None or self._leg is not None
        return due or (self.training is not None and not self._told)

    def keep(self, because: Because) -> None:
        """See `Trainer.keep`."""
        if self.progress is not None and self.training is not None:
            self.progress.keep(self.training, because)

    def drop(self) -> None:
        """See `Trainer.drop`."""
        if self.progress is not None:
            self.progress.drop()
        else:
            # Paused, and what was trained is still there.
            clear(self.assets.blobs)
        self._workshop.finished()
        self._let_go()

    def pause(self) -> None:
        """See `Trainer.pause`."""
        self.keep("pausing")
        self._let_go()
        self.unload()

    def unload(self) -> None:
        """See `Trainer.unload`."""
        self._workshop.unload()

    def close(self) -> None:
        """See `Trainer.close`."""
        self.keep("stopping")

    def _let_go(self) -> None:
        self._begun = self.training = self.progress = self._opened = self._leg = None
        self._told, self._trial_steps = False, 0

    def _prepare(self, begun: _Begun) -> News:
        try:
            return self._open(begun.task, begun.selected)
        except UnusableError as error:
            return Unusable(error.backend, error.kind.reason, str(error))
        except ConfigurationError as error:
            return Refused(error.reason, str(error))
        except ValueError as error:
            return Refused("task", str(error))

    def _open(self, task: Task, selected: Selection) -> Ready:
        if task.chances is None and parse_codec(task.codec).selection == "mask" and task.mask is None:
            raise ValueError(f"codec: {task.codec} needs a mask, and the task has none")
        if task.until is not None and (task.mask or task.channels or task.chances):
            raise ValueError(
                "until: devices without a hub exchange models, and this task has a mask, channels or chances"
            )
        assets, wanted = self.assets, self._settings
        bundle = assets.bundle(task)
        model = assets.model(task, bundle.manifest)
        bench = self._workshop.bench(bundle, assets.variant_of(task), selected, model, task.model.digest)
        shared = assets.shared(task, bundle.manifest)
        recipe, chances = recipe_of(task, shared), assets.chances(task)
        # As it would be used: under the likeliest of the masks that are learnt.
        used = model if chances is None else under_likeliest(bundle.manifest, model, chances)
        said = self._workshop.tried(bench, used)
        # What a bundle does to this device must be known first, and not be blamed on it: on trial it gets no head.
        if not self._trial_steps:
            said = self._workshop.personalised(bench, bundle, task, used, said)
        self._held_out = said
        data = bench.dataset
        if task.until is not None:
            self._opened = _Opened(task, bundle, bench, recipe)
            if self._trial_steps:
                # At once: a leg may be of one step, and there may be nobody yet to exchange models with.
                tried = replace(recipe, steps=self._trial_steps, epochs=0)
                self.training = self._workshop.begin(bench, tried, model)
            return Ready(len(data), bench.choice.engine.name, 0, task.local_steps, data.left_out.count)
        self.progress = Progress(
            *(assets.blobs, task, bundle, bench, recipe, shared), wanted.checkpoint_s, wanted.threads
        )
        momentum = laid_out(assets.blobs.root.parent, task, assets.blobs.disk)
        found = self.progress.found()
        training = self._workshop.begin(bench, recipe, model, shared, found, momentum, chances)
        self.training = training
        return Ready(len(data), bench.choice.engine.name, training.done, training.total_steps, data.left_out.count)

    def _set_out(self, leg: Leg) -> None:
        """On the next leg, from its own checkpoint if there is one: a task of its own as far as that goes."""
        assert self._opened is not None
        opened, assets, wanted = self._opened, self.assets, self._settings
        if self.progress is not None:
            self.progress.drop()
        model = BlobRef(hashlib.sha256(leg.model.astype("<f4", copy=False).data).digest(), 4 * len(leg.model))
        task = replace(opened.task, local_steps=leg.steps, local_epochs=0, seed=leg.seed, model=model)
        recipe = replace(opened.recipe, steps=leg.steps, epochs=0, seed=leg.seed)
        self.progress = Progress(
            *(assets.blobs, task, opened.bundle, opened.bench, recipe, None), wanted.checkpoint_s, wanted.threads
        )
        self.training = self._workshop.begin(
            opened.bench, recipe, leg.model, resume=self.progress.found(), momentum=leg.momentum
        )
        self._told = False

    def _measured(self, leg: Leg) -> Finished:
        assert self._opened is not None
        own = self._workshop.tried(self._opened.bench, leg.model)
        return Finished(Trained(leg.model, 0.0, 0, 0.0), self._peak(), self._held_out, own)
