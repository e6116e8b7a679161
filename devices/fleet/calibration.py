"""Calibration: the share of a core with which the reference step takes the catalogue's time, measured and corrected.

At full speed -> a first quota -> measured within it -> one correction -> measured again: that is what is reported. The
kernel hands out a quota in periods of 100 ms, or of a second, so that a short step takes no longer than ever, or most
of a period. Only the mean over many periods means anything; a median does not.
"""

import math
from dataclasses import dataclass

from devices.engines.cgroups import bandwidth
from devices.fleet.clock import LEAST_QUOTA, Clock
from devices.fleet.record import Calibration
from devices.fleet.reference import LEAST_S, LEAST_STEPS

# How far from the catalogue's time a step may be for a calibration to be good.
TOLERANCE = 0.15
MAX_STEPS = 5_000
# Of the kernel's, which are a second for small quotas: one more or less is then a twentieth.
_PERIODS = 20
# Within these no correction is worth its measurement, which takes half a minute for a slow board.
_CLOSE = 0.07


@dataclass(frozen=True, slots=True)
class Goal:
    """What a device's step should take, in milliseconds of the emulated clock, and takes here at full speed."""

    catalogue_ms: float
    full_speed_ms: float
    clock: Clock

    @property
    def first(self) -> float:
        """The quota that follows from full speed alone: right if a quota cost nothing."""
        return bounded(self.clock.quota(self.full_speed_ms, self.catalogue_ms))

    @property
    def steps(self) -> int:
        """How many steps are to be timed within the quota."""
        real_s = self.clock.real(self.catalogue_ms / 1e3)
        _, period_us = bandwidth(self.first)
        return min(MAX_STEPS, max(LEAST_STEPS, math.ceil(max(LEAST_S, _PERIODS * period_us / 1e6) / real_s)))

    def measured(self, real_ms: float) -> Calibration:
        """What was found, for the record: real_ms is the mean step by a real clock."""
        return Calibration(self.full_speed_ms, self.clock.emulated(real_ms), self.catalogue_ms)

    def corrected(self, quota: float, real_ms: float) -> float | None:
        """The next quota after a mean step of real_ms within one; None if that one is good as it is."""
        ratio = self.measured(real_ms).measured_ms / self.catalogue_ms
        next_quota = bounded(quota * ratio)
        return None if abs(ratio - 1) <= _CLOSE or next_quota == quota else next_quota


def bounded(quota: float) -> float:
    """A quota that the kernel can give, of one core at most: a step is one thread's."""
    return min(1.0, max(LEAST_QUOTA, quota))


def verdict(found: Calibration) -> str:
    """One sentence for people."""
    good = "within" if abs(found.error) <= TOLERANCE else "not within"
    return (
        f"{found.measured_ms:.1f} ms a step, the catalogue says {found.catalogue_ms:.1f}: {found.error:+.0%}, {good} "
        f"{TOLERANCE:.0%}"
    )
