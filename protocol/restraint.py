"""How often the same complaint is said: a few times a minute, then with the number of those left unsaid."""

from collections.abc import Hashable
from dataclasses import dataclass, field

# Whoever can send messages must not be able to fill the disk with what is said of them.
BURST = 5
EVERY_S = 60.0


@dataclass(slots=True)
class _Said:
    since: float
    said: int = 0
    unsaid: int = 0


@dataclass(slots=True)
class Restraint:
    """Remembers each kind of complaint; the caller sees to it that there are not any number of kinds."""

    burst: int = BURST
    _kinds: dict[Hashable, _Said] = field(default_factory=dict)

    def unsaid(self, kind: Hashable, now: float) -> int | None:
        """How many of a kind were left unsaid before this one, or None if this one is to be left unsaid too."""
        state = self._kinds.setdefault(kind, _Said(now))
        before = 0
        if now - state.since >= EVERY_S:
            before = state.unsaid
            state = self._kinds[kind] = _Said(now)
        if state.said >= self.burst:
            state.unsaid += 1
            return None
        state.said += 1
        return before
