"""A round, as a pure table of (state, event) -> (state, decisions); no I/O, and the clock is an argument.

    (no seat) --Invite--> invited --Accepted--> working --Delivered--> done
                             |                     |
                             +------ Stopped ------+--> out          at a deadline: invited, working --> late

Seats are filled up to `wanted` from the spare devices, so a device that stops is replaced as soon as there is another.
The round closes at `goal` delivered updates; at its deadline with at least `minimum`; or when it has the minimum and
nobody is left to wait for. A deadline with fewer extends it: late devices keep their task and may still deliver, others
are asked as well, and the minimum is then enough at once. What was delivered is never given back.

Where late updates are folded, devices that still work when a round closes are carried into the next (carried.py):
their updates count for the minimum of whichever round is open when they come, and the goal is for the round's own.
In **buffered** mode (FedBuff: Nguyen et al. 2022, algorithm 1) every update counts for the goal, `wanted` is how many
devices work at once, carried ones among them, whoever delivered gives its seat to the next, and the deadline is one of
silence: each update moves it on.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

# carried: in the store alone, of a round that is closed.
Phase = Literal["invited", "working", "late", "done", "out", "carried"]
PENDING: frozenset[Phase] = frozenset({"invited", "working"})
OPEN: frozenset[Phase] = PENDING | {"late"}


@dataclass(frozen=True, slots=True)
class Round:
    """One round. `deadline` is on the caller's clock; `seats` holds every device ever asked.

    late: updates of earlier rounds that wait for this one's fold. carry: devices that are still at work when it closes
    keep their task.
    """

    number: int
    goal: int
    minimum: int
    wanted: int
    deadline_s: float
    deadline: float
    seats: Mapping[str, Phase] = field(default_factory=dict)
    extensions: int = 0
    closed: bool = False
    late: int = 0
    carry: bool = False
    buffered: bool = False

    def __post_init__(self) -> None:
        assert 1 <= self.minimum <= self.goal <= self.wanted

    def devices(self, *phases: Phase) -> tuple[str, ...]:
        """The devices in these phases, sorted."""
        return tuple(sorted(d for d, phase in self.seats.items() if phase in phases))

    def count(self, *phases: Phase) -> int:
        """How many devices are in these phases; asked at every event, so in rounds of thousands without their names."""
        all_of_them = list(self.seats.values())
        return sum(all_of_them.count(phase) for phase in phases)

    @property
    def gathered(self) -> int:
        """How many updates its fold would take now."""
        return self.count("done") + self.late


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
class DeliveredLate:
    """A carried device's update was accepted, durably, and waits for this round's fold. It has no seat any more."""

    device: str


@dataclass(frozen=True, slots=True)
class Returned:
    """A device is (again) there."""

    device: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed."""


Event = Accepted | Stopped | Delivered | DeliveredLate | Returned | Tick


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
    """Fold the updates of these devices and the late ones; withdraw the tasks of those, and carry these."""

    delivered: tuple[str, ...]
    withdrawn: tuple[str, ...]
    carried: tuple[str, ...] = ()


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


def decide(state: Round, event: Event, now: float, spare: Iterable[str], busy: int = 0) -> Outcome:
    """The next state and what to do.

    spare: the devices present and not carried, the one to be asked first at the front, read only where one may be
    needed; who has a seat is known here. busy: how many carried devices are at work.
    """
    if state.closed:
        return state, ()
    decisions: list[Decision] = []
    state = _seat(state, event, now)
    phase = None if isinstance(event, Tick) else state.seats.get(event.device)
    if isinstance(event, Returned) and phase in OPEN:
        decisions.append(SendAgain(event.device))
    overdue = now >= state.deadline and state.gathered < state.minimum
    # Most events leave no seat to fill; then the order of thousands of others, which is work, is never asked for.
    # Whoever stopped just now is not asked again in the same breath.
    stopped = event.device if isinstance(event, Stopped) else None
    spare = tuple(d for d in spare if d != stopped) if overdue or _has_room(state, busy) else ()
    if overdue:
        state, extended = _extend(state, now)
        decisions.extend(extended)
        # Whoever stopped before may have got over it, and there may be nobody else; behind all others.
        spare = (*(d for d in spare if d not in state.seats), *(d for d in spare if state.seats.get(d) == "out"))
    else:
        spare = tuple(d for d in spare if d not in state.seats)
    if _complete(state, now, others=bool(spare), busy=busy):
        state, close = _close(state)
        return state, (*decisions, close)
    state, invited = _top_up(state, spare, busy)
    return state, (*decisions, *invited)


def _seat(state: Round, event: Event, now: float) -> Round:
    """The seats after an event. One that means nothing in a phase changes nothing."""
    if isinstance(event, DeliveredLate):
        return _heard(replace(state, late=state.late + 1), now)
    if isinstance(event, Tick | Returned) or event.device not in state.seats:
        return state
    phase = state.seats[event.device]
    after = phase
    if isinstance(event, Delivered):
        after = "done"
        state = state if phase == "done" else _heard(state, now)
    elif isinstance(event, Stopped) and phase in OPEN:
        after = "out"
    elif isinstance(event, Accepted) and phase == "invited":
        after = "working"
    return replace(state, seats={**state.seats, event.device: after})


def _heard(state: Round, now: float) -> Round:
    """After an update: in buffered mode the deadline counts from the last one."""
    return replace(state, deadline=now + state.deadline_s) if state.buffered else state


def _taken(state: Round, busy: int) -> int:
    """How many of the wanted seats are not free."""
    pending = state.count(*PENDING)
    return pending + busy if state.buffered else pending + state.count("done")


def _has_room(state: Round, busy: int) -> bool:
    """Whether others would be asked now, or be looked for before the round does without them."""
    return not state.count(*PENDING) or _taken(state, busy) < state.wanted


def _complete(state: Round, now: float, *, others: bool, busy: int) -> bool:
    if (state.gathered if state.buffered else state.count("done")) >= state.goal:
        return True
    at_work = bool(state.count(*PENDING)) or (state.buffered and busy > 0)
    nobody_left = not at_work and not others
    return state.gathered >= state.minimum and (now >= state.deadline or state.extensions > 0 or nobody_left)


def _extend(state: Round, now: float) -> Outcome:
    late = state.devices(*OPEN)
    seats: dict[str, Phase] = {**state.seats, **dict.fromkeys(late, "late")}
    state = replace(state, seats=seats, deadline=now + state.deadline_s, extensions=state.extensions + 1)
    return state, (Extend(state.gathered, late), *(SendAgain(d) for d in late))


def _close(state: Round) -> tuple[Round, Close]:
    delivered, left = state.devices("done"), state.devices(*OPEN)
    closed = replace(state, closed=True)
    return closed, Close(delivered, (), left) if state.carry else Close(delivered, left)


def _top_up(state: Round, spare: tuple[str, ...], busy: int) -> Outcome:
    free = state.wanted - _taken(state, busy)
    asked = spare[: max(0, free)]
    seats: dict[str, Phase] = {**state.seats, **dict.fromkeys(asked, "invited")}
    return replace(state, seats=seats), tuple(Invite(d) for d in asked)
