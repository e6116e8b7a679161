"""What an agent does about its one task at a time: a pure table of (phase, event) -> (job, decisions).

    idle --Assigned--> fetching --Prepared--> training --Trained--> packing --Packed--> idle
                          |  ^---Resumed---.     |
                          `----Paused--> waiting <--Paused

A device keeps the task that it trains until that is done or withdrawn: late work counts. A newer one that is said
meanwhile is answered with the task in hand, so that a coordinator that no longer wants it withdraws it, and said again.
An update is packed only when the outbox is empty: the residual that goes into it is known only after the update
before it was settled. While the device may not train its task waits, with what was trained kept on disk, and
is then prepared anew. Whatever happens, a task ends in an update in the outbox, in a report, or in a withdrawal by
the coordinator; the table has no other way back to idle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from protocol.messages import INELIGIBLE, Task

Phase = Literal["idle", "fetching", "waiting", "training", "packing"]


@dataclass(frozen=True, slots=True)
class Job:
    """The task in hand, if any, and how far it is. paused: why it waits, for people; empty while it does not."""

    phase: Phase = "idle"
    task: Task | None = None
    paused: str = ""

    def __post_init__(self) -> None:
        assert (self.phase == "idle") == (self.task is None)
        assert (self.phase == "waiting") == bool(self.paused)


@dataclass(frozen=True, slots=True)
class Assigned:
    """The coordinator sent a task, for the first time or again."""

    task: Task


@dataclass(frozen=True, slots=True)
class Prepared:
    """Bundle, model, data and runtime are at hand."""


@dataclass(frozen=True, slots=True)
class Trained:
    """All local steps are done."""


@dataclass(frozen=True, slots=True)
class Packed:
    """The update lies in the outbox, durably."""


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """The coordinator no longer wants a task."""

    task: str


@dataclass(frozen=True, slots=True)
class Stopped:
    """The task cannot be done here. `state` says whether it was never begun or broke."""

    state: Literal["refused", "failed"]
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Paused:
    """The device may not train now."""

    detail: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The device may train again."""


Event = Assigned | Prepared | Trained | Packed | Withdrawn | Stopped | Paused | Resumed


@dataclass(frozen=True, slots=True)
class Remember:
    """Keep this task on disk, so that a restart takes it up again."""

    task: Task


@dataclass(frozen=True, slots=True)
class Fetch:
    """Get what the task needs and is not on disk."""


@dataclass(frozen=True, slots=True)
class Train:
    """Begin the local steps."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Encode the update and put it in the outbox as soon as the outbox is empty."""


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the coordinator what became of a task."""

    task: str
    state: Literal["accepted", "refused", "failed"]
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Forget:
    """Let go of the task, on disk and in memory."""


@dataclass(frozen=True, slots=True)
class Suspend:
    """Keep what was trained, and give back the memory that it took."""


Decision = Remember | Fetch | Train | Pack | Report | Forget | Suspend
Outcome = tuple[Job, tuple[Decision, ...]]


def decide(job: Job, event: Event) -> Outcome:
    """The next job and what to do. Events that mean nothing in a phase change nothing."""
    rule = _TABLE.get((job.phase, type(event)))
    return rule(job, event) if rule else (job, ())


def _begin(job: Job, event: Event) -> Outcome:
    assert isinstance(event, Assigned)
    return Job("fetching", event.task), (Remember(event.task), Fetch())


def _again(job: Job, event: Event) -> Outcome:
    assert isinstance(event, Assigned)
    assert job.task is not None
    if event.task.name == job.task.name:
        # The coordinator asks because it did not hear; a task still being fetched is answered when it is ready.
        return job, () if job.phase == "fetching" else (_in_hand(job),)
    if event.task.run == job.task.run and event.task.round < job.task.round:
        return job, ()
    if job.phase != "fetching" and event.task.run == job.task.run:
        return job, (_in_hand(job),)
    return Job("fetching", event.task), (Forget(), Remember(event.task), Fetch())


def _prepared(job: Job, _: Event) -> Outcome:
    assert job.task is not None
    return Job("training", job.task), (Report(job.task.name, "accepted"), Train())


def _paused(job: Job, event: Event) -> Outcome:
    assert isinstance(event, Paused)
    assert job.task is not None
    job = Job("waiting", job.task, event.detail)
    return job, (_in_hand(job), Suspend())


def _resumed(job: Job, _: Event) -> Outcome:
    assert job.task is not None
    job = Job("fetching", job.task)
    return job, (_in_hand(job), Fetch())


def _in_hand(job: Job) -> Report:
    """Accepted, as agents always said of a task that they will do; of one that waits the reason is added."""
    assert job.task is not None
    return Report(job.task.name, "accepted", INELIGIBLE if job.paused else "", job.paused)


def _trained(job: Job, _: Event) -> Outcome:
    return Job("packing", job.task), (Pack(),)


def _packed(_: Job, __: Event) -> Outcome:
    return Job(), (Forget(),)


def _withdrawn(job: Job, event: Event) -> Outcome:
    assert isinstance(event, Withdrawn)
    assert job.task is not None
    return (Job(), (Forget(),)) if event.task == job.task.name else (job, ())


def _stopped(job: Job, event: Event) -> Outcome:
    assert isinstance(event, Stopped)
    assert job.task is not None
    return Job(), (Report(job.task.name, event.state, event.reason, event.detail), Forget())


_TABLE: dict[tuple[Phase, type], Callable[[Job, Event], Outcome]] = {
    ("idle", Assigned): _begin,
    ("fetching", Assigned): _again,
    ("fetching", Prepared): _prepared,
    ("fetching", Withdrawn): _withdrawn,
    ("fetching", Stopped): _stopped,
    ("fetching", Paused): _paused,
    ("waiting", Assigned): _again,
    ("waiting", Paused): _paused,
    ("waiting", Resumed): _resumed,
    ("waiting", Withdrawn): _withdrawn,
    ("waiting", Stopped): _stopped,
    ("training", Assigned): _again,
    ("training", Trained): _trained,
    ("training", Withdrawn): _withdrawn,
    ("training", Stopped): _stopped,
    ("training", Paused): _paused,
    ("packing", Assigned): _again,
    ("packing", Packed): _packed,
    ("packing", Withdrawn): _withdrawn,
    ("packing", Stopped): _stopped,
}
