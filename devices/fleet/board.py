"""A board as data: what a device of that kind can compute, hold, send and suffer, each figure with its source."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from devices.links import Profile as LinkProfile

Architecture = Literal["amd64", "arm64"]

# No clock is off by more than since 1970, where a board without a battery for its clock wakes up.
MAX_CLOCK_OFFSET_S = 4e9
_YEAR_S = 366 * 86_400.0
# What comes and goes more often is no board.
LEAST_S = 5.0


@dataclass(frozen=True, slots=True)
class Power:
    """Watts that a board takes at rest and with one core busy, for the estimate of energy."""

    idle_w: float
    busy_w: float

    def __post_init__(self) -> None:
        check_range("idle_w", self.idle_w, 0.0, 10_000.0, "watts; a Raspberry Pi 4 at rest takes about 2.7")
        check_range("busy_w", self.busy_w, self.idle_w, 10_000.0, "watts, and not less than idle_w")


@dataclass(frozen=True, slots=True)
class Battery:
    """Drains by `Power`, charges at `charge_w` while mains is there; off below `off_below`, back at `on_above`."""

    capacity_wh: float
    charge_w: float
    level: float = 1.0
    off_below: float = 0.1
    on_above: float = 0.3

    def __post_init__(self) -> None:
        check_range("capacity_wh", self.capacity_wh, 1e-3, 1e6, "watt hours; a phone has about 15")
        check_range("charge_w", self.charge_w, 1e-3, 1e6, "watts; a USB charger gives 5 to 20")
        check_range("level", self.level, 0.0, 1.0, "how full it is at the start; 1.0 is full")
        check_range("off_below", self.off_below, 0.0, 1.0, "the level at which the device goes off")
        check_range(
            "on_above", self.on_above, self.off_below, 1.0, "the level at which it comes back, not below off_below"
        )


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

    def __post_init__(self) -> None:
        check_range("duty", self.duty, 0.0, 1.0, "the share of period_s that the device is on; 1.0 is always")
        check_range("period_s", self.period_s, 0.0, _YEAR_S, "seconds of the emulated clock")
        if self.duty < 1.0 and self.period_s == 0.0:
            raise ValueError(
                f"period_s: 0 with a duty of {self.duty}; say how long one turn of on and off is, in seconds"
            )
        if 0.0 < self.period_s < LEAST_S:
            raise ValueError(f"period_s: {self.period_s:g} is below {LEAST_S:g} s; a board takes longer to start")
        check_range("phase_s", self.phase_s, 0.0, _YEAR_S, "seconds of the emulated clock")
        check_range("day_s", self.day_s, 1.0, _YEAR_S, "seconds of the emulated clock; a real day has 86400")
        for place, chance in enumerate(self.trace):
            check_range(f"trace[{place}]", chance, 0.0, 1.0, "the chance that the device is on in that part of a day")
        last = 0.0
        for place, span in enumerate(self.mains):
            if len(span) != 2:
                raise ValueError(f"mains[{place}]: {list(span)} is no span; say [BEGIN, END] in seconds of a day")
            begin, end = span
            if not last <= begin < end <= self.day_s:
                raise ValueError(
                    f"mains[{place}]: {begin:g} to {end:g} s; spans must be in order, not overlap, and end within "
                    f"day_s ({self.day_s:g} s)"
                )
            last = end
        if self.mains and self.battery is None:
            raise ValueError("mains: there is no battery to charge; add availability.battery, or leave mains out")

    @property
    def always(self) -> bool:
        return self.duty == 1.0 and not self.trace and self.battery is None


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

    def __post_init__(self) -> None:
        check_range("cores", self.cores, 1, 1024, "of the board's own processor")
        check_range("step_ms", self.step_ms, 1e-3, 1e6, "milliseconds of the reference training step on one core")
        check_range("memory_mib", self.memory_mib, 32, 1 << 22, "MiB; an agent with its runtime alone needs some 100")
        check_range("disk_mib", self.disk_mib, 16, 1 << 30, "MiB of the disk that holds the agent's state")
        check_range("disk_write_mib_s", self.disk_write_mib_s, 0.01, 1e5, "MiB a second")
        check_range(
            "clock_offset_s", self.clock_offset_s, -MAX_CLOCK_OFFSET_S, MAX_CLOCK_OFFSET_S, "seconds; -60 is late"
        )
        check_range("mtbf_s", self.mtbf_s, 0.0, 1e12, "mean seconds between failures of power; 0 is never")
        if 0.0 < self.mtbf_s < LEAST_S:
            raise ValueError(f"mtbf_s: {self.mtbf_s:g} is below {LEAST_S:g} s; a board takes longer to start")
        check_range("off_s", self.off_s, 0.1, _YEAR_S, "seconds that a failure of power lasts")


def check_range(key: str, value: float, low: float, high: float, meaning: str) -> None:
    """Raises ValueError that names the key, the value, its range and what it means."""
    if not (math.isfinite(value) and low <= value <= high):
        raise ValueError(f"{key}: {value:g} is outside {low:g}..{high:g}: {meaning}")
