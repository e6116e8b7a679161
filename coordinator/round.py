"""A round, as a pure table of (state, event) -> (state, decisions); no I/O, and the clock is an argument.

    (no seat) --Invite--> invited --Accepted--> working --Delivered--> done
                             |                     |
                             +------ Stopped ------+--> out          at a deadline: invited, working --> late

Seats are filled up to `wanted` from the spare devices, so a device that stops is replaced as soon as there is another.
The round closes at `goal` delivered updates; at its deadline with at least `minimum`; or when it has the minimum and
nobody is left to wait for. A deadline with fewer extends it: late devices keep their task and may still deliver, others
are asked as well, and the minimum is then enough at once. What was delivered is never given back.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Phase = Literal["invited", "working", "late", "done", "out"]
PENDING: frozenset[Phase] = frozenset({"invited", "working"})
OPEN: frozenset[Phase] = PENDING | {"late"}


@dataclass(frozen=True, slots=True)
class Round:
    """One round. `deadline` is on the caller's clock; `seats` holds every device ever asked."""

    number: int
    goal: int
    minimum: int
    wanted: int
    deadline_s: float
    deadline: float
    seats: Mapping[str, Phase] = field(default_factory=dict)
    extensions: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        assert 1 <= self.minimum <= self.goal <= self.wanted

    def devices(self, *phases: Phase) -> tuple[str, ...]:
        """The devices in these phases, sorted."""
        return tuple(sorted(d for d, phase in self.seats.items() if phase in phases))


@dataclass(frozen=True, slots=True)
class Accepted:
    """A device took its task."""

    device: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """A device refused its task or failed at it, or its update was refused."""

    device: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """A device's update was accepted, durably."""

    device: str


@dataclass(frozen=True, slots=True)
class Returned:
    """A device is (again) there."""

    device: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = Accepted | Stopped | Delivered | Returned | Tick


@dataclass(frozen=True, slots=True)
class Invite:
    """Give this device a task."""

    device: str


@dataclass(frozen=True, slots=True)
class SendAgain:
    """Send this device its task once more."""

    device: str


@dataclass(frozen=True, slots=True)
class Extend:
    """The deadline passed with too few updates; the round goes on."""

    delivered: int
    late: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Close:
    """Fold the updates of these devices, and withdraw the tasks of those."""

    delivered: tuple[str, ...]
    withdrawn: tuple[str, ...]


Decision = Invite | SendAgain | Extend | Close
Outcome = tuple[Round, tuple[Decision, ...]]


def open_round(
    number: int,
    goal: int,
    minimum: int,
    over_select: float,
    deadline_s: float,
    now: float,
    seats: Mapping[str, Phase] | None = None,
    extensions: int = 0,
) -> Round:
    """A round before anybody was asked, or with the seats it had when it was last on disk and a new deadline."""
    wanted = math.ceil(goal * over_select - 1e-9)
    return Round(number, goal, minimum, wanted, deadline_s, now + deadline_s, dict(seats or {}), extensions)


def decide(state: Round, event: Event, now: float, spare: Iterable[str]) -> Outcome:
    """The next state and what to do.

    spare: the devices present, the one to be asked first at the front, read only where one may be needed; who has a
    seat is known here.
    """
    if state.closed:
        return state, ()
    decisions: list[Decision] = []
    state = _seat(state, event)
    phase = None if isinstance(event, Tick) else state.seats.get(event.device)
    if isinstance(event, Returned) and phase in OPEN:
        decisions.append(SendAgain(event.device))
    overdue = now >= state.deadline and len(state.devices("done")) < state.minimum
    # Most events leave no seat to fill; then the order of thousands of others, which is work, is never asked for.
    # Whoever stopped just now is not asked again in the same breath.
    stopped = event.device if isinstance(event, Stopped) else None
    spare = tuple(d for d in spare if d != stopped) if overdue or _has_room(state) else ()
    if overdue:
        state, extended = _extend(state, now)
        decisions.extend(extended)
        # Whoever stopped before may have got over it, and there may be nobody else; behind all others.
        spare = (*(d for d in spare if d not in state.seats), *(d for d in spare if state.seats.get(d) == "out"))
    else:
        spare = tuple(d for d in spare if d not in state.seats)
    if _complete(state, now, bool(spare)):
        state, close = _close(state)
        return state, (*decisions, close)
    state, invited = _top_up(state, spare)
    return state, (*decisions, *invited)


def _seat(state: Round, event: Event) -> Round:
    """The seats after an event. One that means nothing in a phase changes nothing."""
    if isinstance(event, Tick | Returned) or event.device not in state.seats:
        return state
    phase = state.seats[event.device]
    after = phase
    if isinstance(event, Delivered):
        after = "done"
    elif isinstance(event, Stopped) and phase in OPEN:
        after = "out"
    elif isinstance(event, Accepted) and phase == "invited":
        after = "working"
    return replace(state, seats={**state.seats, event.device: after})


def _has_room(state: Round) -> bool:
    """Whether others would be asked now, or be looked for before the round does without them."""
    pending = len(state.devices(*PENDING))
    return pending == 0 or len(state.devices("done")) + pending < state.wanted


def _complete(state: Round, now: float, others: bool) -> bool:
    done, pending = len(state.devices("done")), bool(state.devices(*PENDING))
    if done >= state.goal:
        return True
    nobody_left = not pending and not others
    return done >= state.minimum and (now >= state.deadline or state.extensions > 0 or nobody_left)


def _extend(state: Round, now: float) -> Outcome:
    late = state.devices(*OPEN)
    seats: dict[str, Phase] = {**state.seats, **dict.fromkeys(late, "late")}
    done = len(state.devices("done"))
    state = replace(state, seats=seats, deadline=now + state.deadline_s, extensions=state.extensions + 1)
    return state, (Extend(done, late), *(SendAgain(d) for d in late))


def _close(state: Round) -> tuple[Round, Close]:
    return replace(state, closed=True), Close(state.devices("done"), state.devices(*OPEN))


def _top_up(state: Round, spare: tuple[str, ...]) -> Outcome:
    free = state.wanted - len(state.devices("done", *PENDING))
    asked = spare[: max(0, free)]
    seats: dict[str, Phase] = {**state.seats, **dict.fromkeys(asked, "invited")}
    return replace(state, seats=seats), tuple(Invite(d) for d in asked)
