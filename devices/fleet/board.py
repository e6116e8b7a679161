"""A board as data: what a device of that kind can compute, hold, send and suffer, each figure with its source."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from devices.links import Profile as LinkProfile

Architecture = Literal["amd64", "arm64"]


@dataclass(frozen=True, slots=True)
class Power:
    """Watts that a board takes at rest and with one core busy, for the estimate of energy."""

    idle_w: float
    busy_w: float


@dataclass(frozen=True, slots=True)
class Battery:
    """Drains by `Power`, charges at `charge_w` while mains is there; off below `off_below`, back at `on_above`."""

    capacity_wh: float
    charge_w: float
    level: float = 1.0
    off_below: float = 0.1
    on_above: float = 0.3


@dataclass(frozen=True, slots=True)
class Availability:
    """When a device is there. Times are of the emulated clock.

    duty: the share of each `period_s` that it is on, from `phase_s` on. trace: the chance that it is on in each of
    equal parts of a day of `day_s` (diurnal); both may hold at once. mains: spans of a day with mains, for a battery.
    """

    duty: float = 1.0
    period_s: float = 0.0
    phase_s: float = 0.0
    trace: tuple[float, ...] = ()
    day_s: float = 86_400.0
    battery: Battery | None = None
    mains: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Board:
    """A kind of device. step_ms: the reference training step on one of its cores. mtbf_s: 0 is never.

    sources: for each figure, by its key in the file, where it is from, or how it was derived and from what.
    """

    name: str
    title: str
    architecture: Architecture
    cpu: str
    cores: int
    step_ms: float
    memory_mib: int
    disk_mib: int
    disk_write_mib_s: float
    power: Power
    link: LinkProfile
    availability: Availability = field(default_factory=Availability)
    clock_offset_s: float = 0.0
    mtbf_s: float = 0.0
    off_s: float = 30.0
    sources: Mapping[str, str] = field(default_factory=dict)
