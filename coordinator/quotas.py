"""What the coordinator listens to of one device: so many messages and bytes a minute, and what is beyond is not read.

A token bucket each, full at first and never fuller than one minute's worth, so that a device that was quiet may say
much at once, as it does when it uploads. Nothing is lost by it: whatever matters is said again until it is answered.
"""

from dataclasses import dataclass

from protocol.errors import Rejection

# Of so many names; behind them the one that was heard first starts anew. Strangers may have any number.
_MOST_NAMES = 20_000
_MINUTE_S = 60.0


@dataclass(slots=True)
class _Left:
    messages: float
    bytes: float
    at: float


class Quotas:
    """messages, mib: of one device a minute; 0 is for no limit."""

    def __init__(self, messages: int, mib: int) -> None:
        self._messages, self._bytes = float(messages), float(mib << 20)
        self._left: dict[str, _Left] = {}

    def take(self, device: str, size: int, now: float) -> Rejection | None:
        """Counts a message of so many bytes, or says why it is not to be read, and then counts nothing."""
        left = self._refilled(device, now)
        if self._messages and left.messages < 1.0:
            return Rejection(
                "quota-messages", f"over {self._messages:.0f} messages a minute (limits.device_messages_per_minute)"
            )
        if self._bytes and left.bytes < size:
            return Rejection(
                "quota-bytes", f"over {self._bytes / (1 << 20):.0f} MiB a minute (limits.device_mib_per_minute)"
            )
        left.messages -= 1.0
        left.bytes -= size
        return None

    def _refilled(self, device: str, now: float) -> _Left:
        left = self._left.get(device)
        if left is None:
            if len(self._left) >= _MOST_NAMES:
                self._left.pop(next(iter(self._left)))
            left = self._left[device] = _Left(self._messages, self._bytes, now)
        minutes = max(0.0, now - left.at) / _MINUTE_S
        left.messages = min(self._messages, left.messages + minutes * self._messages)
        left.bytes = min(self._bytes, left.bytes + minutes * self._bytes)
        left.at = now
        return left
