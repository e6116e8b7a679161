"""Bytes, counted where they are sent: each sender's count of its present boot, and the sum of those before."""

from dataclasses import dataclass, replace
from typing import Literal

Direction = Literal["up", "down"]
# The device, and which way: up is the device's own count, down the coordinator's of what it sent there.
Sender = tuple[str, Direction]

# No board sends this much in its life; a device that claims more is lying and counts as this. The sum over the largest
# fleet still fits the 63 bits of a database.
MAX_CLAIM_BYTES = 1 << 48


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes one sender has sent: in its present boot by its own count, and in all boots before.

    day: the UTC day since 1970 that `before_bytes` of them were sent before.
    """

    boot: int = 0
    sent_bytes: int = 0
    earlier_bytes: int = 0
    day: int = 0
    before_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.sent_bytes + self.earlier_bytes

    @property
    def today_bytes(self) -> int:
        return max(0, self.total_bytes - self.before_bytes)

    def on(self, day: int) -> "Traffic":
        """The same on that day, which begins with what was sent so far; a clock set back begins one too."""
        return self if day == self.day else replace(self, day=day, before_bytes=self.total_bytes)

    def counted(self, boot: int, sent_bytes: int) -> "Traffic":
        """After a message that says `sent_bytes` in `boot`. What is late or comes twice changes nothing."""
        if boot > self.boot:
            return replace(self, boot=boot, sent_bytes=sent_bytes, earlier_bytes=self.total_bytes)._limited()
        if boot < self.boot:
            return self
        return replace(self, sent_bytes=max(self.sent_bytes, sent_bytes))._limited()

    def _limited(self) -> "Traffic":
        return replace(self, sent_bytes=min(self.sent_bytes, MAX_CLAIM_BYTES - self.earlier_bytes))
