"""Whether a message of the coordinator is of now: a replayed one is of a start that nobody answered for, or known.

Clocks of devices may start in 1970, and a coordinator that was put back from a backup counts its starts again. So a
start of the coordinator is believed in when its welcome names a hello of ours that was not answered before, and from
then on its messages count once each. What was recorded on another day names no hello of this start of ours.
"""

from dataclasses import dataclass, field

from protocol.envelope import Envelope
from protocol.errors import Rejection
from protocol.freshness import REPLAYED, Window
from protocol.messages import CoordinatorState, Welcome

_NOT_YET = Rejection("replay", "it is of no start of the coordinator that has answered a hello of ours")


@dataclass(slots=True)
class Freshness:
    """instance: of this start of ours, which no other has."""

    instance: int
    _greeted: int = -1
    _answered: int = -1
    _epoch: int | None = None
    _window: Window = field(default_factory=Window)

    def greeted(self, sequence: int) -> None:
        """A hello was sent, as the message of this number."""
        self._greeted = sequence

    def check(self, said: Envelope) -> Rejection | None:
        """Why a message that was sealed by the coordinator is not to be heeded."""
        if isinstance(said.body, CoordinatorState):
            # Retained, so that it comes again and again; all that it does is have us greet.
            return None
        if isinstance(said.body, Welcome):
            answers = said.body.hello if said.body.instance == self.instance else None
            if answers is None or not self._answered < answers <= self._greeted:
                return Rejection("replay", "it answers no hello of ours, or one that was answered before")
            # What it said before is of before our hello. One that has a new store may count starts and messages anew.
            self._answered, self._epoch, self._window = answers, said.boot, Window(said.sequence - 1)
        if said.boot != self._epoch:
            return _NOT_YET
        return None if self._window.take(said.sequence) else REPLAYED
