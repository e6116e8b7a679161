"""The trial of a bundle that this device has not committed to: it loads, agrees with torch's record and takes a few
steps whose loss, gradient and model are finite, or the device says so and stays on the version before."""

import logging
import platform
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

from edge_agent import job as jobs
from edge_agent.greeting import agent_version
from edge_agent.slots import Asked, Failure, Slot, Slots
from protocol.disk import is_disk_trouble
from protocol.errors import Rejection
from protocol.messages import Task

log = logging.getLogger("edge-agent")

# What decides whether a bundle runs here, besides itself.
_RUNTIMES = ("onnxruntime", "onnxruntime-training-cpu", "numpy")
# What a trainer says that failed inside, or had too little memory.
_FAULTS = frozenset({"internal", "memory", "failed"})
REASON = "trial"


class Trial:
    """The trial of the bundle of the task in hand, if it is on trial. `begin` comes before anything of it is loaded.

    steps: how many must be finite. let_go: of what a bundle that failed holds in memory and on disk.
    """

    def __init__(self, slots: Slots, steps: int, let_go: Callable[[], None]) -> None:
        self._slots, self._steps, self._let_go = slots, steps, let_go
        self._digest: bytes | None = None
        self._asked: Asked | None = None
        self._unusable = self._passed = False
        self._said: Rejection | None = None
        for failed in slots.recover():
            log.error("trial failed: %s", slots.said_of(failed))

    def refusal(self, task: Task, release: int | None = None) -> Rejection | None:
        """Why nothing of a task is to be fetched. release: the version that its signed release says."""
        refusal = self._slots.refusal(task.manifest.digest, release, _asked(task))
        if refusal is not None and refusal != self._said:
            # Once: a coordinator may ask for hours.
            log.warning("task=%s refused, as will be others of its bundle: %s", task.name, refusal)
        self._said = refusal
        return refusal

    def begin(self, task: Task, release: int | None = None) -> int:
        """Before the task's bundle is loaded: how many steps must pass, 0 where it needs no trial. Again for the same
        one, as where another backend is tried, is once."""
        digest = task.manifest.digest
        if self._digest != digest and self._slots.begin(digest, release):
            log.info("trial begins bundle=%s steps=%d", digest.hex()[:12], self._steps)
            self._digest, self._asked = digest, _asked(task)
        self._unusable = self._passed = False
        return 0 if self._digest is None else self._steps

    def unusable(self) -> None:
        """No backend is left that loads the bundle and takes its recorded step; the job stops with the reason."""
        self._unusable = True

    def passed(self, done: int) -> Rejection | None:
        """After enough steps, all finite: commits to the bundle. Why not, where somebody ended the trial by hand."""
        if self._digest is None:
            return None
        slot = self._slots.find(self._digest)
        if slot is not None and slot.state == "failed":
            self._digest = None
            return self._rejection(slot)
        self._passed = True
        try:
            self._commit(self._digest)
        except (OSError, sqlite3.Error) as error:
            if not is_disk_trouble(error):
                raise
            # The work goes on, and the task's end tries again.
            log.warning("bundle=%s passed its trial, which cannot be kept yet: %s", self._digest.hex()[:12], error)
        return None

    def judged(self, event: jobs.Event) -> jobs.Event:
        """What an event of the job says once it is known what it means for the trial."""
        if self._digest is None or self._passed or not isinstance(event, jobs.Stopped):
            return event
        failed = self._failed(self._digest, event)
        return event if failed is None else replace(event, reason=REASON, detail=failed.detail)

    def died(self, detail: str) -> Rejection | None:
        """The process that trains ended by itself: a trial that is begun and comes to no end. What to say of the task
        where that was once too often; None where there is no trial, or it may be begun again."""
        if self._digest is None:
            return None
        digest, self._digest = self._digest, None
        slot = self._slots.died(digest, detail)
        return None if slot is None else self._rejection(slot)

    def end(self) -> None:
        """The task is over or rests, or the agent stops in order: what was not decided is begun anew another time."""
        digest, self._digest = self._digest, None
        if digest is None:
            return
        try:
            if self._passed:
                self._commit(digest)
            else:
                self._slots.interrupt(digest)
        except (OSError, sqlite3.Error) as error:
            if not is_disk_trouble(error):
                raise
            log.warning("a trial that was ended in order counts as one that was not: %s", error)

    def _commit(self, digest: bytes) -> None:
        if self._slots.commit(digest):
            log.info("trial passed: committed bundle=%s", digest.hex()[:12])
        self._digest = None

    def _failed(self, digest: bytes, event: jobs.Stopped) -> Rejection | None:
        if event.reason in _FAULTS:
            # As good as a death: the next trial that ends so is the last one.
            return self.died(event.detail)
        failure: Failure = "steps" if event.reason == "diverged" else ""
        if self._unusable:
            failure = "load" if event.reason == "bundle" else "parity"
        slot = self._slots.fail(digest, failure, event.detail, self._asked) if failure else None
        if slot is None:
            return None
        self._digest = None
        return self._rejection(slot)

    def _rejection(self, slot: Slot) -> Rejection:
        said = self._slots.said_of(slot)
        log.error("trial failed: %s", said)
        self._let_go()
        return Rejection(REASON, said)


def _asked(task: Task) -> Asked:
    return Asked(f"{task.optimizer} batch_size={task.batch_size}", task.learning_rate, task.model.digest)


def software() -> str:
    """What a bundle is tried with: another agent or runtime may do what these could not. Imports none of them."""
    names = [f"{name} {_version(name)}" for name in _RUNTIMES]
    return ", ".join([f"agent {agent_version()}", *names, f"Python {platform.python_version()}", platform.machine()])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
