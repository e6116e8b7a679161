"""Which numbered messages of one sender were here before: the last few by number, and all that are older than those."""

from dataclasses import dataclass, field

from protocol.errors import Rejection

# Brokers that redeliver mix up a few dozen messages, never more than are under way at once.
REMEMBERED = 256

REPLAYED = Rejection(
    "replay", "this message, or a later one, was here before; a broker that redelivers after an outage does so too"
)


@dataclass(slots=True)
class Window:
    """Of one start of one sender. Numbers may have gaps, and come a little out of order. before: it and lower ones are
    not new."""

    before: int = -1
    _seen: set[int] = field(default_factory=set)

    def take(self, sequence: int) -> bool:
        """Whether a number is new, which it is once."""
        if sequence <= self.before or sequence in self._seen:
            return False
        self._seen.add(sequence)
        if len(self._seen) > REMEMBERED:
            self.before = min(self._seen)
            self._seen.remove(self.before)
        return True
