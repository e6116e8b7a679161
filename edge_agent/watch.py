"""Looks at the device now and then while a task is in hand, and says when it must wait, may go on, or is given back."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from edge_agent import job as jobs
from edge_agent.budgets import Budgets, Today
from edge_agent.conditions import Device, day_of
from edge_agent.eligibility import Conditions, EligibilitySettings, Held, Reason, broken
from edge_agent.link import Link
from edge_agent.progress import is_begun
from edge_agent.repeats import NEVER
from edge_agent.settings import AgentSettings
from edge_agent.store import AgentStore
from protocol.disk import LOCAL, Disk
from protocol.messages import INELIGIBLE, Task

log = logging.getLogger("edge-agent")

# These hold back updates too: what they spare is the link.
_LINK = frozenset({"metered", "bytes"})


class Source(Protocol):
    """Where conditions come from."""

    def conditions(self, wall_s: float, *, training: bool) -> Conditions:
        """How the device is now."""

    def written_bytes(self) -> int | None:
        """What was written to the disk since this start."""


class Watch:
    """The eligibility of one device. link_bytes: both ways, since this start. begun: whether there is work done on a
    task. wall: the system's clock.

    A task that has not begun waits for `wait_s`, but no longer than its round does, and is then refused; one that has
    begun waits until the coordinator withdraws it, for its work counts when it is late.
    """

    def __init__(
        self,
        settings: EligibilitySettings,
        source: Source,
        state: Path,
        link_bytes: Callable[[], int],
        begun: Callable[[Task], bool],
        disk: Disk = LOCAL,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._settings, self._source, self._wall = settings, source, wall
        self._link_bytes, self._begun = link_bytes, begun
        self._budgets = Budgets(state, settings.bytes_per_day, settings.writes_mib_per_day << 20, disk)
        self._held = Held()
        self._task: str | None = None
        self._said: frozenset[str] = frozenset()
        # When a task that has not begun is given back, and when its round is over.
        self._until = self._ends = NEVER
        self.look_at = 0.0

    def look(self, job: jobs.Job, now: float) -> jobs.Event | None:
        """What the device's conditions mean for the task in hand, if that is something new."""
        if not self._asks(job):
            return None
        assert job.task is not None
        if job.task.name != self._task:
            self._take(job.task, now)
        if job.phase == "training":
            self._until = self._ends = NEVER
        if now < self.look_at:
            return None
        reasons = self._broken(now, training=job.phase == "training")
        if not reasons:
            if job.paused:
                log.info("task=%s goes on: the device may train again", job.task.name)
            return jobs.Resumed() if job.paused else None
        detail = "; ".join(reason.detail for reason in reasons)
        if not job.paused and self._ends != NEVER:
            self._until = min(now + self._settings.wait_s, self._ends)
        if now + max(reason.passes_s for reason in reasons) > self._until or now >= self._until:
            log.warning("task=%s refused: this device may not train: %s", job.task.name, detail)
            # Said again, it is looked at anew.
            self._task = None
            return jobs.Stopped("refused", INELIGIBLE, detail)
        if job.paused and self._said == self._held.words:
            return None
        self._said = self._held.words
        log.warning("task=%s waits: this device may not train: %s", job.task.name, detail)
        return jobs.Paused(detail)

    def holds_link(self) -> bool:
        """Whether updates must wait as well."""
        if not (self._settings.metered == "avoid" or self._settings.bytes_per_day):
            return False
        reasons = broken(self._settings, self._conditions(training=False), self._held)
        return any(reason.word in _LINK for reason in reasons)

    def due(self, job: jobs.Job) -> float:
        """When to look next; never while there is nothing to look for."""
        return self.look_at if self._asks(job) else NEVER

    def save(self) -> None:
        """What today came to, before the agent ends."""
        self._count()
        self._budgets.save()

    def _asks(self, job: jobs.Job) -> bool:
        return job.phase not in ("idle", "packing") and self._settings.any

    def _take(self, task: Task, now: float) -> None:
        self._task = task.name
        self._until, self._ends = NEVER, NEVER if self._begun(task) else now + task.time_left_s
        self.look_at = now

    def _broken(self, now: float, *, training: bool) -> tuple[Reason, ...]:
        self.look_at = now + self._settings.interval_s
        found = self._conditions(training=training)
        reasons = broken(self._settings, found, self._held)
        words = frozenset(reason.word for reason in reasons)
        if "memory" in words and "memory" not in self._held.words:
            self._held = replace(self._held, own_mib=found.own_mib or 0.0)
        self._held = replace(self._held, words=words)
        return reasons

    def _conditions(self, *, training: bool) -> Conditions:
        today = self._count()
        found = self._source.conditions(self._wall(), training=training)
        return replace(found, bytes_today=today.sent, writes_today=today.written)

    def _count(self) -> Today:
        written = self._source.written_bytes() if self._settings.writes_mib_per_day else None
        today = self._budgets.count(day_of(self._wall()), self._link_bytes(), written)
        return today if written is not None else replace(today, written=0)


def watch_of(
    settings: AgentSettings, store: AgentStore, link: Link, source: Source | None, wall: Callable[[], float]
) -> Watch:
    """The watch of an agent. source: None is this device itself."""
    rules, state, disk = settings.eligibility, store.blobs.root.parent, store.blobs.disk
    source = source or Device(state, rules.metered_interfaces, settings.training.threads)
    return Watch(rules, source, state, lambda: link.bytes_both_ways, partial(is_begun, store.blobs), disk, wall)
