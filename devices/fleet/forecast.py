"""What a plan comes to on a machine before anything starts: its clock, each device's quota, and what it cannot do."""

from collections.abc import Mapping
from dataclasses import dataclass

from devices.engines.engine import Limits
from devices.fleet.board import Architecture
from devices.fleet.calibration import bounded
from devices.fleet.clock import LEAST_QUOTA, USED, Clock, Needed, chosen, needed, runs
from devices.fleet.plan import Device, FleetPlan

# What an agent takes at rest, and its training process in addition (docs/benchmarks.md, "A running agent").
IDLE_MIB = 41
TRAINING_MIB = 77


@dataclass(frozen=True, slots=True)
class Machine:
    """What a fleet runs on. full_speed_ms: the reference step on one core, for each instruction set that runs here."""

    architecture: Architecture
    cores: int
    memory_mib: int
    full_speed_ms: Mapping[Architecture, float]


@dataclass(frozen=True, slots=True)
class Forecast:
    """clock: what the fleet will have. limits: for each device by name; a light one has none. notes: what an emulation
    of this fleet on this machine is not, for people and the report."""

    clock: Clock
    least: Needed
    limits: Mapping[str, Limits]
    notes: tuple[str, ...]


def forecast(plan: FleetPlan, machine: Machine) -> Forecast:
    """Raises ConfigurationError for what this machine cannot do."""
    least = needed(plan.devices, machine.full_speed_ms, machine.cores, machine.architecture)
    clock = chosen(plan.clock, least)
    limits = {device.name: _limits(device, machine, clock) for device in plan.devices}
    return Forecast(clock, least, limits, notes(plan, machine, clock, least))


def _limits(device: Device, machine: Machine, clock: Clock) -> Limits:
    if device.light:
        return Limits()
    board = device.board
    quota = device.cores
    if quota is None:
        quota = bounded(clock.quota(machine.full_speed_ms[runs(device, machine.architecture)], board.step_ms))
    return Limits(quota, board.memory_mib, board.disk_mib)


def memory_mib(plan: FleetPlan) -> int:
    """What all agents take when as many train at once as a round has: an estimate, without what they share."""
    rounds = plan.settings.get("rounds", {})
    training = rounds.get("devices", len(plan.devices))
    at_once = min(len(plan.devices), training) if isinstance(training, int) else len(plan.devices)
    return len(plan.devices) * IDLE_MIB + at_once * TRAINING_MIB


def notes(plan: FleetPlan, machine: Machine, clock: Clock, least: Needed) -> tuple[str, ...]:
    """What the emulation of this fleet with this clock is not, a sentence or two each."""
    return (*_notes_on_time(plan, machine, clock, least), *_notes_on_devices(plan, machine))


def _notes_on_time(plan: FleetPlan, machine: Machine, clock: Clock, least: Needed) -> list[str]:
    devices = plan.devices
    calibrated = [device for device in devices if device.calibrated]
    said = []
    if clock.real_s != 1.0:
        said.append(
            f"One second of the emulated clock lasts {clock.real_s:g} real ones; links, faults and deadlines are "
            "scaled alike, and so are agents' keep-alives and restarts, but not all of their own intervals. It lasts "
            f"at least {least.real_s:.3g}: {least.because}."
        )
    if len(devices) > machine.cores:
        said.append(
            f"{len(devices)} devices run on {machine.cores} cores in time slots: each has a share of every 100 ms (CFS "
            f"bandwidth), and together at most {USED:.0%}. That is a slower device in the mean, not a slower core."
        )
    if calibrated:
        said.append(
            "Quotas are set by the reference training step. Whatever a board does better or worse than that compared "
            "with this machine (starting Python, packing, encryption) is slower or faster here than on the board."
        )
    derived = sorted({d.board.name for d in calibrated if d.board.sources.get("step_ms", "").startswith("derived")})
    if derived:
        said.append(f"No one has timed the step on {', '.join(derived)}: it is derived from a published benchmark.")
    least_quota = [d.name for d in calibrated if _raw_quota(d, machine, clock) < LEAST_QUOTA]
    if least_quota:
        said.append(
            f"{', '.join(least_quota)}: the kernel gives no quota below {LEAST_QUOTA:g} of a core, so that steps are "
            "shorter than the board's; a faster clock (a smaller number) would mend it."
        )
    return said


def _notes_on_devices(plan: FleetPlan, machine: Machine) -> list[str]:
    host, devices, said = machine.architecture, plan.devices, []
    foreign = [d.name for d in devices if d.native and d.board.architecture != host]
    if foreign:
        said.append(
            f"{_named(foreign)} run {host} programs where their boards run their own: times hold, bits may differ."
        )
    emulated = [d.name for d in devices if not d.native]
    if emulated:
        said.append(
            f"{_named(emulated)} run their boards' instructions under QEMU, which is slow at some of them only."
        )
    given = [d.name for d in devices if d.cores is not None]
    if given:
        said.append(
            f"{_named(given)} have cores given in the fleet's file and are not calibrated: their times mean nothing."
        )
    if plan.engine == "processes":
        said.append("Devices are plain processes: nothing limits their processor or disk, and none is calibrated.")
    if plan.engine != "processes" and not all(device.light for device in devices):
        said.append("How fast a board's disk writes is not emulated: its size is, and what a power cut takes from it.")
    light = sum(device.light for device in devices)
    if light:
        said.append(f"{light} light agents have no limits: they count for scale, not for time, memory or energy.")
    if (wanted := memory_mib(plan)) > machine.memory_mib:
        said.append(
            f"Agents may want {wanted} MiB, and this machine has {machine.memory_mib}: some may be killed for it."
        )
    return said


def _raw_quota(device: Device, machine: Machine, clock: Clock) -> float:
    return clock.quota(machine.full_speed_ms[runs(device, machine.architecture)], device.board.step_ms)


def _named(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 6 else f"{', '.join(names[:5])} and {len(names) - 5} more"
