"""Whether another coordinator serves the same fleet through the same broker, which harms both and must be said plainly.

All coordinators of a fleet speak on one topic and hear themselves there. What stands there from an earlier life comes
before the echo of our own words; what says after it that another accepts work is alive. One that was started from a
copy of our state folder has our run, and perhaps our epoch: each start draws an instance, which tells the two apart.
"""

from dataclasses import dataclass, replace
from typing import Literal

from protocol.errors import ConfigurationError
from protocol.messages import CoordinatorState

# A coordinator that has served longer than this does not go for one of another run: it has work to lose.
NEWCOMER_S = 10.0
# Of two that came within this, which messages take their time to say, the one with the lower instance goes.
TIE_S = 1.0
# The answer that shows a newcomer that we are alive; not so often that two answer each other without end.
ANSWER_EVERY_S = 5.0
# Where another says that it accepts work, it may have died without a word, or be about to answer: so long nobody's
# update is taken, for it would be receipted by one and folded by the other.
UNSURE_S = 2.0

# What to make of a state that was heard: nothing; say our own again, because it was overwritten; that, and complain.
Heard = Literal["nothing", "overwritten", "rival"]


@dataclass(slots=True)
class Rivals:
    """One coordinator's ear for others. own: who it is; `say` is what it says itself."""

    own: CoordinatorState
    _echoed: bool = False
    _first_s: float | None = None
    _answered_s: float = float("-inf")
    _unsure_until_s: float = float("-inf")
    _suspect: CoordinatorState | None = None

    def connected(self, now: float) -> None:
        self._echoed = False
        if self._first_s is None:
            self._first_s = now

    def say(self, now: float) -> CoordinatorState:
        return replace(self.own, serving_s=round(self._served_s(now), 3))

    def unsure(self, now: float) -> bool:
        """Whether somebody else may be at work still, so that nothing is to be asked or taken."""
        return now < self._unsure_until_s

    def hear(self, said: CoordinatorState, fleet: str, now: float) -> Heard:
        """Takes a state in. Raises ConfigurationError when another was here first."""
        if _who(said) == _who(self.own) and said.accepting:
            self._echoed = True
            return "nothing"
        if self._suspect is not None and _who(said) == _who(self._suspect) and not said.accepting:
            self._unsure_until_s = float("-inf")
        newcomer = self._served_s(now) < NEWCOMER_S
        if not self._echoed:
            if said.accepting and newcomer:
                self._suspect, self._unsure_until_s = said, now + UNSURE_S
            return "nothing"
        if now - self._answered_s < ANSWER_EVERY_S:
            return "nothing"
        if said.accepting and (newcomer or self._is_copy(said)) and self._came_second(said, now):
            copy = "; it was started from a copy of this state folder" if said.run == self.own.run else ""
            raise ConfigurationError(
                f"fleet: another coordinator (run {said.run or 'unknown'}, start {said.epoch}) serves fleet {fleet!r} "
                f"through this broker{copy}; stop it, or give this one another fleet name or broker"
            )
        self._answered_s = now
        # The last words of a connection of ours that the broker took for alive, or of one that has left.
        return "rival" if said.accepting else "overwritten"

    def _served_s(self, now: float) -> float:
        return 0.0 if self._first_s is None else now - self._first_s

    def _is_copy(self, said: CoordinatorState) -> bool:
        """Whether it takes updates for our run, which must not go on however long it went unheard, as where one of the
        two was folding meanwhile."""
        return said.run == self.own.run and said.serving_s is not None

    def _came_second(self, said: CoordinatorState, now: float) -> bool:
        """Of the two; one that does not say for how long it has served is taken for the first."""
        if said.serving_s is None:
            return True
        served_s = self._served_s(now)
        if abs(served_s - said.serving_s) < TIE_S:
            return (self.own.instance or 0) < (said.instance or 0)
        return served_s < said.serving_s


def _who(said: CoordinatorState) -> tuple[str, int, int | None]:
    return said.run, said.epoch, said.instance
