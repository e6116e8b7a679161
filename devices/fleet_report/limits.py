"""Limits of a device: as asked, as read back, and why one is not in force."""

import math
from dataclasses import dataclass

from devices.engines.engine import Limits
from devices.fleet.calibration import TOLERANCE
from devices.fleet.record import DeviceRecord, FleetRecord
from devices.text import MISSING

# Of a limit as read back: the kernel keeps a quota in whole microseconds and memory in whole pages.
_ROUNDING = 0.02
_NAMES = {"cores": "cores", "memory_mib": "memory", "disk_mib": "disk"}


@dataclass(frozen=True, slots=True)
class NotInForce:
    """A limit that was asked for and does not hold, and the reason as far as it is known."""

    device: str
    limit: str
    why: str


def not_in_force(device: DeviceRecord) -> list[NotInForce]:
    """All of a device's."""
    why = device.in_force.why
    result = []
    for key, name in _NAMES.items():
        asked, held = getattr(device.asked, key), getattr(device.in_force.limits, key)
        missing = asked is not None and not _holds(asked, held)
        if missing or key in why:
            result.append(NotInForce(device.device, name, why.get(key, "no reason is known")))
    return result + [NotInForce(device.device, key, text) for key, text in why.items() if key not in _NAMES]


def far_off(device: DeviceRecord) -> bool:
    """Whether its calibrated step is further from the catalogue than it may be."""
    error = step_error(device)
    return error is not None and abs(error) > TOLERANCE


def step_error(device: DeviceRecord) -> float | None:
    """Of the calibrated step against the catalogue's, where both are known."""
    found = device.calibration
    if found is None or not found.catalogue_ms > 0 or not math.isfinite(found.measured_ms / found.catalogue_ms):
        return None
    return found.error


def asked_cores(record: FleetRecord) -> float | None:
    """Cores of this machine that the devices together take when all are busy; None where a device has no limit."""
    each = [device.asked.cores for device in record.devices]
    return math.fsum(cores for cores in each if cores is not None) if None not in each else None


def limit_text(asked: Limits, held: Limits, key: str) -> str:
    """What is in force, and beside it what was asked for where that is another figure."""
    wanted, found = _figure(getattr(asked, key), key), _figure(getattr(held, key), key)
    same = wanted == found or _holds(getattr(asked, key), getattr(held, key))
    return found if same else f"{found if found != MISSING else 'none'} ({wanted} asked)"


def _holds(asked: float | None, held: float | None) -> bool:
    return asked is not None and held is not None and math.isclose(asked, held, rel_tol=_ROUNDING)


def _figure(value: float | None, key: str) -> str:
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.3g}" if key == "cores" else f"{value:g} MiB"
