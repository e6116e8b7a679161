"""Simulated time: what happens when, in an order that depends on nothing but what was asked for."""

import heapq
from collections.abc import Callable

Action = Callable[[], None]


class Timeline:
    """Seconds since the simulation began, and what is still to happen. Of two things at one time the one asked for
    first comes first."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Action]] = []
        self._asked = 0

    def at(self, time: float, action: Action) -> None:
        self._asked += 1
        heapq.heappush(self._queue, (max(time, self.now), self._asked, action))

    def after(self, seconds: float, action: Action) -> None:
        self.at(self.now + seconds, action)

    def step(self) -> None:
        """Goes on to the next thing and lets it happen."""
        self.now, _, action = heapq.heappop(self._queue)
        action()


class Watch:
    """A process's own clock, by which computing takes time: `unit_s` more at every look."""

    def __init__(self, timeline: Timeline, unit_s: float) -> None:
        self._timeline, self._unit_s, self.spent_s = timeline, unit_s, 0.0

    def __call__(self) -> float:
        self.spent_s += self._unit_s
        return self._timeline.now + self.spent_s

    def read(self) -> float:
        """The time, at no cost."""
        return self._timeline.now + self.spent_s
