"""Whether a message of a device is of now: each counts once, and a start of a device that was followed is over.

A hello names its start by a number drawn at random, so that a device whose state folder is new, or was put back from a
backup, is heard although it counts its starts again. What is remembered is remembered until the coordinator restarts.
"""

from dataclasses import dataclass, field

from protocol.envelope import Envelope
from protocol.errors import Rejection
from protocol.freshness import REPLAYED, Window
from protocol.messages import DeviceState, Hello

# Two agents under one name go back and forth between two starts, which is told of elsewhere (doubles.py).
MOST_STARTS = 4
# A hello whose start was forgotten would be taken for a new one, so of hellos more is remembered.
MOST_HELLOS = 1024


@dataclass(slots=True)
class _Heard:
    """Of one device. boots: its last starts by number; hellos: of each instance the number of its last hello."""

    boots: dict[int, Window] = field(default_factory=dict)
    hellos: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Freshness:
    """An ear for repeated messages, whose senders are known already."""

    _of: dict[str, _Heard] = field(default_factory=dict)

    def check(self, device: str, said: Envelope) -> Rejection | None:
        """Takes a message in; why it is not to be heeded."""
        heard = self._of.setdefault(device, _Heard())
        body = said.body
        if isinstance(body, Hello) and body.instance is not None:
            return _greeted(heard, said, body.instance)
        if isinstance(body, DeviceState) and said.sequence == 0:
            # A last will, which the broker says whenever it loses the device.
            return None if not heard.boots or said.boot >= max(heard.boots) or _is_current(heard, said) else REPLAYED
        if said.boot not in heard.boots:
            if heard.boots and said.boot < max(heard.boots):
                return REPLAYED
            _begin(heard, said.boot)
        return None if heard.boots[said.boot].take(said.sequence) else REPLAYED


def _greeted(heard: _Heard, said: Envelope, instance: int) -> Rejection | None:
    last = heard.hellos.pop(instance, None)
    if last is not None and said.sequence <= last:
        heard.hellos[instance] = last
        return REPLAYED
    if last is None and len(heard.hellos) >= MOST_HELLOS:
        del heard.hellos[next(iter(heard.hellos))]
    heard.hellos[instance] = said.sequence
    if last is None:
        # Also where it counts from one again: of what was numbered before this hello, nothing is of this start.
        _begin(heard, said.boot, said.sequence - 1)
    elif said.boot not in heard.boots:
        _begin(heard, said.boot)
    heard.boots[said.boot].take(said.sequence)
    return None


def _begin(heard: _Heard, boot: int, before: int = -1) -> None:
    heard.boots.pop(boot, None)
    if len(heard.boots) >= MOST_STARTS:
        # Not the current one, whose numbers are then new again; it is lower only where the device's state was new.
        *others, _ = heard.boots
        del heard.boots[min(others)]
    heard.boots[boot] = Window(before)


def _is_current(heard: _Heard, said: Envelope) -> bool:
    """Whether it is of the start that began last, whose boot may be a low one where the device's state was new."""
    return said.boot == next(reversed(heard.boots))
