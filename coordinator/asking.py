"""The tasks of the open round, each said again until its device answers, ever more rarely.

A device answers when it has fetched all that its task needs, so the first silence is no news.
"""

from collections.abc import Mapping
from dataclasses import replace

from coordinator.fleet import Fleet
from coordinator.link import Link
from protocol.failpoints import reached
from protocol.messages import Task

FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 60.0
NEVER = float("inf")


class Asking:
    """Who was asked to do what, and when it is said again. deadline: of the round, from which a task's time follows."""

    def __init__(self, link: Link, fleet: Fleet) -> None:
        self._link, self._fleet = link, fleet
        self._tasks: dict[str, Task] = {}
        self._retry: dict[str, tuple[float, float]] = {}
        # Thousands of tasks are not looked at whenever a message came; none is due before this.
        self._look_at = NEVER

    def resume(self, tasks: Mapping[str, Task], unanswered: tuple[str, ...], now: float) -> None:
        """The tasks of a round, as the store has them; those unanswered are due at once."""
        self._tasks = dict(tasks)
        self._retry = dict.fromkeys(unanswered, (now, FIRST_RETRY_S))
        self._look_at = now if self._retry else NEVER

    def task(self, device: str) -> Task | None:
        """What the device was asked in this round, None where it was not."""
        return self._tasks.get(device)

    def ask(self, device: str, task: Task, now: float, deadline: float) -> None:
        """Says a task, for the first time or in place of the one before, and waits for an answer."""
        self._tasks[device] = task
        self.say(device, now, deadline)

    def say(self, device: str, now: float, deadline: float) -> None:
        """Says the device's task once more and waits for an answer anew."""
        self._send(device, now, deadline)
        self._retry[device] = (now + FIRST_RETRY_S, 2 * FIRST_RETRY_S)
        self._look_at = min(self._look_at, now + FIRST_RETRY_S)

    def answered(self, device: str) -> None:
        self._retry.pop(device, None)

    def say_again(self, now: float, deadline: float) -> None:
        """Says every task that is due, to devices that are there."""
        if now < self._look_at:
            return
        # Who comes back by another word than a hello is found after so long.
        self._look_at = now + FIRST_RETRY_S if self._retry else NEVER
        for device, (at, retry_s) in tuple(self._retry.items()):
            if now >= at and self._fleet.has(device):
                self._send(device, now, deadline)
                self._retry[device] = (now + retry_s, min(retry_s * 2, LONGEST_RETRY_S))

    def due(self) -> float:
        """When to look again."""
        return self._look_at

    def _send(self, device: str, now: float, deadline: float) -> None:
        self._link.send(device, replace(self._tasks[device], time_left_s=max(0.0, deadline - now)))
        reached("coordinator.task-sent")
