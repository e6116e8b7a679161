"""Whether another coordinator serves the same fleet through the same broker, which harms both and must be said plainly.

All coordinators of a fleet speak on one topic and hear themselves there. What stands there from an earlier life comes
before the echo of our own words; what says after it that another accepts work is alive.
"""

from dataclasses import dataclass, replace

from protocol.errors import ConfigurationError
from protocol.messages import CoordinatorState

# A coordinator that has served no longer than this is the one that came second, and goes.
NEWCOMER_S = 10.0
# The answer that shows a newcomer that we are alive; not so often that two answer each other without end.
ANSWER_EVERY_S = 5.0


@dataclass(slots=True)
class Rivals:
    """One coordinator's ear for others. own: what it says itself."""

    own: CoordinatorState
    _echoed: bool = False
    _first_s: float | None = None
    _answered_s: float = float("-inf")

    def connected(self, now: float) -> None:
        self._echoed = False
        if self._first_s is None:
            self._first_s = now

    def hear(self, said: CoordinatorState, fleet: str, now: float) -> bool:
        """Whether to say our own state again. Raises ConfigurationError when another was here first."""
        # How long greetings are spread changes in one life.
        if replace(said, spread_s=None) == replace(self.own, spread_s=None):
            self._echoed = True
            return False
        if not (self._echoed and said.accepting) or now - self._answered_s < ANSWER_EVERY_S:
            return False
        if self._first_s is not None and now - self._first_s < NEWCOMER_S:
            raise ConfigurationError(
                f"fleet: another coordinator (run {said.run or 'unknown'}, start {said.epoch}) serves fleet {fleet!r} "
                "through this broker; stop it, or give this one another fleet name or broker"
            )
        self._answered_s = now
        return True
