"""One start of a process, of which every step that another can see is counted, and which may be its last."""

from collections.abc import Callable
from dataclasses import dataclass, field


class Killed(BaseException):
    """The process is gone between two instructions. No Exception, so that nothing under test can catch it."""


@dataclass(slots=True)
class Steps:
    """The steps of one machine over all its lives. kills: at which of them a process dies, the next one last."""

    trace: Callable[[str], None]
    kills: list[int] = field(default_factory=list)
    taken: int = 0

    def dies_now(self) -> bool:
        self.taken += 1
        if self.kills and self.taken >= self.kills[-1]:
            while self.kills and self.taken >= self.kills[-1]:
                self.kills.pop()
            return True
        return False


@dataclass(slots=True)
class Life:
    """From a start to a kill. What a dead process still tries has no effect."""

    steps: Steps
    alive: bool = True

    def step(self, what: str) -> None:
        """Before anything that leaves a mark outside the process. Raises Killed when it is not to happen any more."""
        if not self.alive:
            raise Killed
        self.steps.trace(what)
        if self.steps.dies_now():
            self.end()
            raise Killed

    def end(self) -> None:
        if self.alive:
            self.alive = False
            self.steps.trace("killed")
