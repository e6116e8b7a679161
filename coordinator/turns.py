"""Whose turn it is to send an update: so many at once, the others in the order in which they came.

A coordinator that asked thousands at once would have all their chunks in the broker's memory, and serve nobody well. So
it asks later, and says about when; nothing is dropped, and who waits need not come again.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass, field

# What a device is told to wait before it offers again: well past its turn, for then it is asked without that.
SHORTEST_S, LONGEST_S = 5.0, 600.0
# How much the newest turn says of how long one takes.
_NEWEST = 0.1


@dataclass(slots=True)
class Turns:
    """most: how many may send at once."""

    most: int
    _sending: set[str] = field(default_factory=set)
    # Each with the number that it drew; a dict keeps the order.
    _waiting: dict[str, int] = field(default_factory=dict)
    _drawn: int = 0
    _given_at: float | None = None
    _turn_s: float = 0.05

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def has(self, device: str) -> bool:
        return device in self._sending

    def take(self, device: str) -> bool:
        """Whether the device may send now. If not it waits, in the place that it had if it did before."""
        if device in self._sending:
            return True
        if device not in self._waiting and not self._waiting and len(self._sending) < self.most:
            self._sending.add(device)
            return True
        if device not in self._waiting:
            self._drawn += 1
            self._waiting[device] = self._drawn
        return False

    def next(self, now: float) -> Iterator[str]:
        """Gives the turns that are free to those who waited longest."""
        free = min(self.most - len(self._sending), len(self._waiting))
        if free > 0 and self._given_at is not None:
            self._turn_s += _NEWEST * ((now - self._given_at) / free - self._turn_s)
        if free > 0 or not self._waiting:
            self._given_at = now if self._waiting else None
        for device in tuple(self._waiting)[:free] if free > 0 else ():
            del self._waiting[device]
            self._sending.add(device)
            yield device

    def wait_s(self, device: str) -> float:
        """In about how many seconds a waiting device may offer again, if it was not asked by then."""
        first = next(iter(self._waiting.values()))
        ahead = 1 + self._waiting[device] - first
        return min(max(2.0 * ahead * self._turn_s, SHORTEST_S), LONGEST_S)

    def pass_on(self, device: str) -> None:
        """One that does not use its turn waits once more, behind all others."""
        self._sending.discard(device)
        self._drawn += 1
        self._waiting[device] = self._drawn

    def end(self, device: str) -> None:
        self._sending.discard(device)
        self._waiting.pop(device, None)

    def keep_only(self, devices: Container[str]) -> None:
        """Ends those of all other devices."""
        for device in (*self._sending, *self._waiting):
            if device not in devices:
                self.end(device)
