"""Whether this machine has room for a fleet, said before anything starts: disk, memory, emulation, devices' disks."""

import shutil
from pathlib import Path

from devices.engines import disks
from devices.engines.container_options import UNMOUNTABLE
from devices.fleet.clock import runs
from devices.fleet.forecast import memory_mib
from devices.fleet.plan import FleetPlan
from devices.images import making, needs
from devices.images.commands import EngineName
from protocol.errors import ConfigurationError

# What a device writes: its bundle twice, model, outbox, logs; and what the coordinator does.
_MIB_A_DEVICE = 24
_MIB = 256


def available_mib() -> int:
    """Memory that programs may still take."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return next((int(words[1]) >> 10 for words in lines if words[0] == "MemAvailable:"), 0)


def check_disk(plan: FleetPlan, place: Path) -> None:
    """Raises ConfigurationError where the fleet's folder would fill its disk."""
    there = next(path for path in (place, *place.parents) if path.exists())
    free = shutil.disk_usage(there).free >> 20
    wanted = _MIB + _MIB_A_DEVICE * len(plan.devices)
    if free < wanted:
        raise ConfigurationError(
            f"out: {place}: {free} MiB are free and {len(plan.devices)} devices need {wanted}; "
            "free some, or name a folder on another disk with --out"
        )


def check_memory(plan: FleetPlan) -> None:
    free, wanted = available_mib(), memory_mib(plan)
    if free < wanted:
        raise ConfigurationError(
            f"devices: {len(plan.devices)} need about {wanted} MiB of this machine's memory and {free} are free; "
            "use fewer, let rounds choose fewer ([coordinator.rounds] devices), or take a machine with more"
        )


def check_containers(plan: FleetPlan, place: Path, engine: EngineName) -> None:
    """What devices in containers need beside an engine. Raises ConfigurationError with what to install or change."""
    if any(character in str(place) for character in UNMOUNTABLE):
        raise ConfigurationError(
            f"out: {place}: a folder with a comma, a quotation mark or a line's end in its name cannot be given to a "
            "container; name another with --out"
        )
    foreign = [device.name for device in plan.devices if runs(device, needs.here()) != needs.here()]
    if foreign and (lack := needs.emulate()):
        raise ConfigurationError(
            f"{foreign[0]}: {lack}; or set native = true for {'it' if len(foreign) == 1 else 'them'}"
        )
    contained = [device for device in plan.devices if not device.light]
    if contained and (why := disks.why_not()) is not None:
        raise ConfigurationError(
            f"disk_mib cannot be enforced: {why}; fleet-emulate doctor says what this machine can do, "
            "and --engine processes runs devices without limits"
        )
    for architecture in sorted({runs(device, needs.here()) for device in contained}):
        making.check_possible(architecture, engine)
