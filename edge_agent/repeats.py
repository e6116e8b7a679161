"""When things are due: what is said again until answered, ever more rarely, and what ends after a while unused."""

from dataclasses import dataclass

import numpy as np

NEVER = float("inf")
FIRST_RETRY_S = 2.0
LONGEST_RETRY_S = 60.0


@dataclass(slots=True)
class Repeated:
    """One such thing. at: when it is said next, on the caller's clock."""

    at: float = NEVER
    _retry_s: float = FIRST_RETRY_S

    def begin(self, at: float) -> None:
        """It is to be said at that time, for the first time."""
        self.at, self._retry_s = at, FIRST_RETRY_S

    def said(self, now: float, rng: np.random.Generator) -> None:
        """It was said, and waits for its answer: for an interval of which half is left to chance, the next one twice as
        long up to the limit."""
        self.at = now + self._retry_s * rng.uniform(0.5, 1.0)
        self._retry_s = min(2 * self._retry_s, LONGEST_RETRY_S)

    def rest(self) -> None:
        """There is nothing to say."""
        self.at = NEVER


@dataclass(slots=True)
class Unused:
    """Something that is let go of when it was not used for so long. at: when that is, on the caller's clock."""

    after_s: float
    at: float = NEVER
    _held: bool = False

    def use(self) -> None:
        self._held, self.at = True, NEVER

    def rest(self, now: float) -> bool:
        """It is not in use now. True once, when it is to be let go of."""
        if self._held and self.at == NEVER:
            self.at = now + self.after_s
        if not self._held or now < self.at:
            return False
        self._held, self.at = False, NEVER
        return True
