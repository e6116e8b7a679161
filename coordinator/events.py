"""What the coordinator tells its operator: one record an event, printed as JSON lines or as text by the command."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from protocol.records import write_record

FinishReason = Literal["target-accuracy", "rounds", "steps"]


@dataclass(frozen=True, slots=True)
class Listening:
    """The broker is there and devices may come. enrolment: the port where they get their certificates, None where they
    need none."""

    broker: str
    url: str
    run: str
    enrolment: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceSeen:
    """A device said hello for the first time since the start, or said something new of itself."""

    device: str
    examples: int | None
    backend: str


@dataclass(frozen=True, slots=True)
class RoundOpened:
    """Tasks went out to this many devices."""

    round: int
    devices: int


@dataclass(frozen=True, slots=True)
class RoundCommitted:
    """A model version exists. devices: updates in its fold, `late` of them of earlier rounds. Bytes are those of this
    round, in each direction, as their senders counted them.

    overhead_s: seconds without the longest training time of a device and without the evaluation. epsilon, delta: what
    the run has given away of any device so far, where there is noise (privacy.py).
    """

    round: int
    version: int
    devices: int
    accuracy: float | None
    loss: float | None
    seconds: float
    overhead_s: float
    bytes_up: int
    bytes_down: int
    late: int = 0
    epsilon: float | None = None
    delta: float | None = None


@dataclass(frozen=True, slots=True)
class UpdateRejected:
    """Something a device sent was refused and counted. `round` is 0 where it is not of one."""

    device: str
    round: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Finished:
    """No more rounds will be opened."""

    reason: FinishReason
    version: int


Event = Listening | DeviceSeen | RoundOpened | RoundCommitted | UpdateRejected | Finished
Emit = Callable[[Event], None]

NAMES: dict[type, str] = {
    Listening: "listening",
    DeviceSeen: "device",
    RoundOpened: "round-opened",
    RoundCommitted: "round-committed",
    UpdateRejected: "rejected",
    Finished: "finished",
}


def as_json(event: Event) -> dict[str, object]:
    """The event as one JSON object, its name first."""
    return {"event": NAMES[type(event)], **write_record(event)}
