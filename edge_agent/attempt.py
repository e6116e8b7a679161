"""The task in hand as the trainer has it: begun, ready, finished or given back."""

import logging
from collections.abc import Callable

from edge_agent import job as jobs
from edge_agent.assets import Assets
from edge_agent.selector import Selector
from edge_agent.trainer import Broken, Died, Finished, News, Proven, Ready, Refused, Trainer, Unusable
from edge_agent.trial import Trial
from edge_agent.trusted import Trusted, version_of
from protocol.errors import ConfigurationError
from protocol.messages import Task

log = logging.getLogger("edge-agent")


class Attempt:
    """ready, finished: what the trainer said of the task in hand. begun: whether it has it. lay_out: puts what a task's
    optimiser begins with where the trainer finds it; raises ValueError of an optimiser that is not known."""

    def __init__(
        self,
        trainer: Trainer,
        selector: Selector,
        assets: Assets,
        trial: Trial,
        trusted: Trusted | None,
        lay_out: Callable[[Task], None],
    ) -> None:
        self._trainer, self._selector, self._assets = trainer, selector, assets
        self._trial, self._trusted, self._lay_out = trial, trusted, lay_out
        self.begun = False
        self.ready: Ready | None = None
        self.finished: Finished | None = None

    def begin(self, task: Task) -> jobs.Event | None:
        """All that the task needs is on this disk. Returns its end, if it cannot be begun."""
        try:
            self._assets.assemble(task)
            variant, manifest = self._assets.variant_of(task), self._assets.manifest(task)
            selected = self._selector.selected(manifest, task.manifest.digest, variant)
            self._lay_out(task)
            steps = self._trial.begin(task, version_of(self._trusted, task))
            self._trainer.begin(task, selected, steps)
        except ConfigurationError as error:
            return _refused(task, error.reason, str(error))
        except ValueError as error:
            return _refused(task, "task", str(error))
        self.begun = True
        return None

    def hear(self, task: Task, news: News) -> jobs.Event | None:
        """What the trainer's word is to the task in hand."""
        match news:
            case Ready():
                self.ready = news
                return jobs.Prepared()
            case Unusable():
                return self._without(task, news)
            case Refused(reason, detail):
                return _refused(task, reason, detail)
            case Broken(reason, detail):
                log.error("task=%s failed: %s", task.name, detail)
                return jobs.Stopped("failed", reason, detail)
            case Proven(done):
                failed = self._trial.passed(done)
                return None if failed is None else jobs.Stopped("failed", failed.reason, failed.detail)
            case Died(cause):
                failed = self._trial.died(cause) or self._trial.refusal(task)
                return self.begin(task) if failed is None else jobs.Stopped("failed", failed.reason, failed.detail)
            case Finished():
                self.finished = news
                return jobs.Trained()

    def pause(self) -> None:
        """The trainer was told to keep it, and let go."""
        self.ready, self.begun = None, False

    def end(self) -> None:
        """There is no such task any more."""
        self.ready, self.finished, self.begun = None, None, False

    def _without(self, task: Task, said: Unusable) -> jobs.Event | None:
        """Passes the backend over. The next one's files are what is missing then."""
        variant, manifest = self._assets.variant_of(task), self._assets.manifest(task)
        none_left = self._selector.fail(manifest, task.manifest.digest, variant, said)
        if none_left is not None:
            self._trial.unusable()
            return _refused(task, none_left.reason, str(none_left))
        log.warning("backend=%s is not usable, another is tried: %s", said.backend, said.detail)
        self.begun = False
        return None


def _refused(task: Task, reason: str, detail: str) -> jobs.Stopped:
    log.error("task=%s refused: %s", task.name, detail)
    return jobs.Stopped("refused", reason, detail)
