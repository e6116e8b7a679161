"""What became of an emulated fleet, as the conductor writes it down and the report shows it: record.json."""

from dataclasses import dataclass
from typing import Literal

from devices.engines.engine import InForce, Limits
from devices.facts import RoundCommitted

# What a device is at a time: off (no power, or not there), on (its agent runs), cut (runs, without a link).
Presence = Literal["off", "on", "cut"]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The reference training step, in milliseconds: at full speed here, within the quota, and of the catalogue."""

    full_speed_ms: float
    measured_ms: float
    catalogue_ms: float

    @property
    def error(self) -> float:
        return self.measured_ms / self.catalogue_ms - 1


@dataclass(frozen=True, slots=True)
class Happening:
    """At a time of the emulated clock: a fault and its end, an exit, a start, an out-of-memory kill, a refusal.

    what: a fault's kind (plan.FaultKind), `KIND ends` for its end, or start, exit, out-of-memory, refusal; the report
    shows other words as they are. device: None is the whole fleet.
    """

    at_s: float
    device: str | None
    what: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Span:
    """A device was this from one time of the emulated clock to another."""

    begin_s: float
    end_s: float
    presence: Presence


@dataclass(frozen=True, slots=True)
class Memory:
    """One sample of a device's memory."""

    at_s: float
    mib: float


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """One device: as asked, as it was, and what it did. Seconds, steps and energy are of the emulated clock.

    step_ms: the mean training step that its agent reported. staleness: mean versions behind of its folded updates.
    link: what its link is, in words.
    """

    device: str
    board: str
    architecture: str
    native: bool
    asked: Limits
    in_force: InForce
    calibration: Calibration | None
    presence: tuple[Span, ...]
    enrolled_s: float | None
    step_ms: float | None
    peak_mib: float | None
    cpu_s: float
    bytes_up: int
    bytes_down: int
    energy_wh: float
    accepted: int
    discarded: int
    rejected: int
    staleness: float | None
    restarts: int
    out_of_memory: int
    memory: tuple[Memory, ...] = ()
    tier: str | None = None
    link: str | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """A round, with the time of the emulated clock at which it was committed, and who was folded."""

    at_s: float
    round: RoundCommitted
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """A whole run. clock: real seconds that one emulated second lasted. seconds: real ones, in all.

    outcome: why it ended: the coordinator's reason (rounds, target-accuracy), or in words what went wrong.
    """

    fleet: str
    engine: str
    machine: str
    started: str
    data: str
    seed: int
    clock: float
    cores: int
    seconds: float
    outcome: str
    rounds: tuple[Committed, ...]
    devices: tuple[DeviceRecord, ...]
    happenings: tuple[Happening, ...]
    notes: tuple[str, ...] = ()
