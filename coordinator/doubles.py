"""Whether two agents speak in the name of one device: a copied SD card, a name typed twice.

Every start of an agent draws an instance and says it in each hello. A process that ended never speaks again, so an
instance that says something new after another one did is alive beside it. A restart, or a disk that was replaced, only
ever goes on to an instance that nobody heard before, and is no double.
"""

from dataclasses import dataclass, field

from protocol.errors import Rejection
from protocol.messages import TWO_AGENTS

_REMEDY = "throw each other out; give each a name and a state folder of its own, never a copy of another's"
# A message that was under way while its agent ended, or two, must not be taken for a second agent.
RETURNS = 3
# Two that live beside each other greet at least every 300 s; so long after the last return there is one again.
QUIET_S = 900.0
# Of a device's former instances the last few are remembered: more than two at once are as bad as two.
MOST_FORMER = 4


@dataclass(slots=True)
class _Heard:
    """Of one device: the instance that spoke last, the number of its last message, and of those before it theirs."""

    instance: int
    sequence: int
    former: dict[int, int] = field(default_factory=dict)
    returns: int = 0
    returned_s: float = float("-inf")


@dataclass(slots=True)
class Doubles:
    """An ear for devices whose instances alternate. Forgets at a restart what it will soon hear again."""

    _of: dict[str, _Heard] = field(default_factory=dict)

    def hear(self, device: str, instance: int | None, sequence: int, now: float) -> Rejection | None:
        """Takes a hello in, and the number of its message; what is wrong if two agents are at it now. An instance of
        None, of an older agent, tells nothing."""
        if instance is None:
            return None
        heard = self._of.setdefault(device, _Heard(instance, sequence))
        if now - heard.returned_s >= QUIET_S:
            heard.returns = 0
        if instance == heard.instance:
            heard.sequence = max(heard.sequence, sequence)
        elif sequence > heard.former.get(instance, -1):
            if instance in heard.former:
                heard.returns, heard.returned_s = heard.returns + 1, now
            heard.former.pop(instance, None)
            heard.former[heard.instance] = heard.sequence
            while len(heard.former) > MOST_FORMER:
                del heard.former[next(iter(heard.former))]
            heard.instance, heard.sequence = instance, sequence
        if heard.returns < RETURNS:
            return None
        return Rejection(TWO_AGENTS, f"two agents call themselves {device!r} and {_REMEDY}")
