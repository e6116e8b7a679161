"""The emulated clock: how many real seconds one of its seconds lasts, and everything that has a time, scaled by that.

A device's quota is a share of a core, given out by the kernel in slots of a period (CFS bandwidth). With more devices
than cores the shares do not fit, unless everything takes longer: steps, links, deadlines, faults, all by one factor.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from devices.fleet.board import Architecture
from devices.fleet.plan import Device
from devices.links import Link
from devices.links import Profile as LinkProfile
from protocol.errors import ConfigurationError

# Of the cores that quotas may fill: the rest is the broker's, the coordinator's and our own.
USED = 0.9
# Of a core for the device that needs most of one. A step within a quota costs up to a third more than at full speed,
# for caches are cold after each wait, and what has a whole core already cannot be corrected.
ALONE = 0.8
# The kernel gives out no less than 1 ms of a period, which is a second at most; twice that can still be corrected.
LEAST_QUOTA = 0.002
# The settings of a coordinator that are times, by table and key.
_TIMES = (
    ("rounds", "deadline_s"),
    ("rounds", "late_hours"),
    ("tiers", "target_s"),
    ("gossip", "dead_after_s"),
    ("gossip", "patience_s"),
)
_MAX_LATENCY_MS = 3_600_000.0
_LEAST_KBIT_S, _MOST_KBIT_S = 0.1, 1e8


@dataclass(frozen=True, slots=True)
class Clock:
    """real_s: how long one second of the emulated clock really lasts."""

    real_s: float

    def real(self, emulated_s: float) -> float:
        return emulated_s * self.real_s

    def emulated(self, real_s: float) -> float:
        return real_s / self.real_s

    def quota(self, full_speed_ms: float, step_ms: float) -> float:
        """The share of a core with which a step that takes full_speed_ms here takes step_ms of the emulated clock."""
        return full_speed_ms / (step_ms * self.real_s)

    def link(self, profile: LinkProfile) -> LinkProfile:
        """A link that is to the emulated clock what this one is to a real one."""
        steps = tuple(
            replace(step, at_s=self.real(step.at_s), link=None if step.link is None else self._link(step.link))
            for step in profile.steps
        )
        return replace(profile, link=self._link(profile.link), steps=steps, repeat_s=self.real(profile.repeat_s))

    def _link(self, link: Link) -> Link:
        latency = min(_MAX_LATENCY_MS, self.real(link.latency_ms))
        return replace(
            link,
            latency_ms=latency,
            jitter_ms=min(latency, self.real(link.jitter_ms)),
            up_kbit_s=self._rate(link.up_kbit_s),
            down_kbit_s=self._rate(link.down_kbit_s),
            stall_every_s=self.real(link.stall_every_s),
            stall_s=self.real(link.stall_s),
        )

    def _rate(self, kbit_s: float | None) -> float | None:
        return None if kbit_s is None else min(_MOST_KBIT_S, max(_LEAST_KBIT_S, kbit_s / self.real_s))

    def settings(self, tables: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
        """A coordinator's settings with its times made real, and fewer bytes a (real) day."""
        scaled = {name: dict(table) for name, table in tables.items()}
        for table, key in _TIMES:
            value = scaled.get(table, {}).get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                scaled[table][key] = self.real(float(value))
        budget = scaled.get("limits", {}).get("device_bytes_per_day")
        if isinstance(budget, int) and budget > 0:
            scaled["limits"]["device_bytes_per_day"] = max(1, round(budget / self.real_s))
        return scaled


@dataclass(frozen=True, slots=True)
class Needed:
    """The least factor at which every device's step can take its time, and what decides it."""

    real_s: float
    because: str


def runs(device: Device, host: Architecture) -> Architecture:
    """Whose instructions the device runs."""
    return host if device.native else device.board.architecture


def needed(
    devices: Sequence[Device], full_speed_ms: Mapping[Architecture, float], cores: int, host: Architecture
) -> Needed:
    """The least factor for devices whose step takes so long here at full speed, by whose instructions they run.

    Two bounds: no device can be faster than ALONE of a core, and all quotas must fit USED of the cores that
    devices with cores of their own leave. Light devices have no quota and are not counted. Raises ConfigurationError.
    """
    given = sum(device.cores for device in devices if device.cores is not None)
    room = USED * cores - given
    calibrated = [device for device in devices if device.calibrated]
    if room <= 0 and (calibrated or given > USED * cores):
        raise ConfigurationError(
            f"devices: cores given in the fleet's file sum to {given:g}, and {USED:.0%} of this machine's {cores} are "
            f"{USED * cores:g}; give fewer, or leave cores out, so that the clock slows down"
        )
    if not calibrated:
        return Needed(0.0, "no device is calibrated")
    ratios = {device.name: full_speed_ms[runs(device, host)] / device.board.step_ms for device in calibrated}
    alone = max(ratios, key=lambda name: ratios[name])
    together = sum(ratios.values()) / room
    if together > ratios[alone] / ALONE:
        return Needed(together, f"{len(calibrated)} devices share {room:g} cores")
    return Needed(ratios[alone] / ALONE, f"{alone} needs {ALONE:.0%} of a core to keep up")


def chosen(wanted: float | None, least: Needed) -> Clock:
    """The clock for a fleet: as the file says, or the least that does, rounded up, and never faster than a real one.

    Raises ConfigurationError where the file asks for what this machine cannot do.
    """
    if wanted is None:
        return Clock(max(1.0, math.ceil(least.real_s * 20) / 20))
    if wanted < least.real_s:
        raise ConfigurationError(
            f"clock: {wanted:g} real seconds an emulated one are fewer than this machine needs, {least.real_s:.3g} "
            f'({least.because}); set at least that, or "auto", or take devices out'
        )
    return Clock(wanted)
