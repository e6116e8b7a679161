"""The seats of closed rounds whose devices are still at work: a pure table beside the one of the open round.

    (open seat) --its round closes--> carried --its update is accepted--> (folded into the next version)
                                         |
                                         +-- it stops, has lost the task, or the horizon is over --> (no seat)

A device has one task at a time, so one that is carried is asked for nothing else. The horizon has two bounds: seconds
since the seat's round was opened, which the caller measures, and rounds, by which its update is behind.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class CarriedSeat:
    """A seat of round `number`. On the caller's clock: until when its device counts as at work, and is waited for."""

    number: int
    busy_until: float
    horizon: float


Carried = Mapping[str, CarriedSeat]


def carry(
    carried: Carried, devices: Iterable[str], seat: CarriedSeat, silent: Container[str] = (), now: float = 0.0
) -> Carried:
    """With the devices of a round that closed. None of them was carried: who is, has no seat in a later round.

    silent: those that were for a whole deadline before, and whose place others have by now.
    """
    added = {device: replace(seat, busy_until=now) if device in silent else seat for device in devices}
    assert not added.keys() & carried.keys(), "a device has one seat"
    return {**carried, **added}


def without(carried: Carried, device: str) -> Carried:
    """After the device delivered, stopped, or lost its task."""
    return {other: seat for other, seat in carried.items() if other != device}


def busy(carried: Carried, now: float) -> int:
    """How many of them count as at work; who was silent for a whole deadline may still deliver, and does not."""
    return sum(now < seat.busy_until for seat in carried.values())


def past(carried: Carried, now: float, number: int, most_rounds: int) -> tuple[str, ...]:
    """The devices whose horizon is over, sorted. number: of the round that would fold their updates."""
    return tuple(sorted(d for d, seat in carried.items() if now >= seat.horizon or number - seat.number > most_rounds))


def has_lost(task: str, told: str | None, outbox: int) -> bool:
    """Whether a device's hello says that it has nothing of this task any more. told: the task that it has in hand.
    outbox: how many updates wait there, one of which may be the task's."""
    return told != task and outbox == 0
