"""A fleet as its file describes it: devices of which boards, on what data, and which faults when."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from devices.fleet.board import MAX_CLOCK_OFFSET_S, Board, check_range
from protocol.topics import check_name

EngineName = Literal["podman", "docker", "processes"]
# kill: of the agent alone, which its service starts again. power-cut: everything at once, for a time. cut, restore: the
# link. throttle: `factor` of the processor. clock-jump: by `by_s`. disk-full: nothing more fits on the state's disk.
FaultKind = Literal["kill", "power-cut", "cut", "throttle", "clock-jump", "disk-full"]

# What one machine's process table, sockets and patience are made for.
MAX_DEVICES = 2_000
MAX_ROUNDS = 10_000
# A week of the emulated clock.
MAX_AT_S = 7 * 86_400.0
# Which keys each fault has besides when, what and whom. For a power cut for_s may be left out: the board's off_s.
_KEYS: Mapping[FaultKind, tuple[str, ...]] = {
    "kill": (),
    "power-cut": ("for_s",),
    "cut": ("for_s",),
    "throttle": ("for_s", "factor"),
    "clock-jump": ("by_s",),
    "disk-full": ("for_s",),
}
# What else is called something where devices are: for logs, and to calibrate.
COORDINATOR, REFERENCE = "coordinator", "reference-step"
_UNSET: Mapping[str, float] = {"for_s": 0.0, "factor": 1.0, "by_s": 0.0}


@dataclass(frozen=True, slots=True)
class Device:
    """One device of the fleet. native: runs this machine's instructions, not its board's under emulation.

    light: a plain process without limits, whatever the fleet's engine, so that there can be hundreds. cores: a share
    of this machine's given instead of calibration; None is what calibration finds.
    """

    name: str
    board: Board
    native: bool = True
    light: bool = False
    cores: float | None = None

    def __post_init__(self) -> None:
        check_name("device", self.name)
        if self.name == COORDINATOR or self.name.startswith(REFERENCE):
            raise ValueError(f"name: {self.name!r} is what the emulation calls its own; choose another")
        if self.light and not self.native:
            raise ValueError(
                "native: false for a light device, which is a plain process of this machine; leave one out"
            )
        if self.light and self.cores is not None:
            raise ValueError(f"cores: {self.cores:g} for a light device, which has no limits; leave one out")
        if self.cores is not None:
            check_range("cores", self.cores, 0.01, 64.0, "cores of this machine, instead of calibration")

    @property
    def calibrated(self) -> bool:
        return not self.light and self.cores is None


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls devices at a time of the emulated clock, and, where it ends, how long it lasts."""

    at_s: float
    do: FaultKind
    devices: tuple[str, ...]
    for_s: float = 0.0
    factor: float = 1.0
    by_s: float = 0.0

    def __post_init__(self) -> None:
        check_range("at_s", self.at_s, 0.0, MAX_AT_S, "seconds of the emulated clock since the fleet's start")
        for key, unset in _UNSET.items():
            if key not in _KEYS[self.do] and getattr(self, key) != unset:
                raise ValueError(
                    f"{key}: {self.do!r} has none; its keys: {', '.join(('at_s', 'device', *_KEYS[self.do]))}"
                )
        if "for_s" in _KEYS[self.do] and not (self.do == "power-cut" and self.for_s == 0.0):
            check_range("for_s", self.for_s, 1e-3, MAX_AT_S, f"seconds that {self.do!r} lasts")
        if "factor" in _KEYS[self.do] and not 0.0 < self.factor < 1.0:
            raise ValueError(f"factor: {self.factor:g} must be above 0 and below 1; 0.5 leaves half of the processor")
        if "by_s" in _KEYS[self.do]:
            check_range("by_s", self.by_s, -MAX_CLOCK_OFFSET_S, MAX_CLOCK_OFFSET_S, "seconds; -3600 is back an hour")
            if self.by_s == 0.0:
                raise ValueError("by_s: 0 is no jump; say by how many seconds, negative for back")


@dataclass(frozen=True, slots=True)
class Joined:
    """A coordinator that runs already: where devices enrol, and a file with a token a line."""

    enrolment: str
    broker: str
    tokens: Path


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """settings: tables laid over the coordinator's settings that the data's preset gives.

    clock: real seconds that one emulated second lasts; None is as few as this machine needs. data: a data set's name,
    or a pattern of files with {device}.
    """

    name: str
    devices: tuple[Device, ...]
    data: str
    rounds: int
    seed: int = 1
    engine: EngineName | None = None
    clock: float | None = None
    faults: tuple[Fault, ...] = ()
    coordinator: Joined | None = None
    settings: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name("name", self.name)
        check_range("rounds", self.rounds, 1, MAX_ROUNDS, "rounds until the fleet is done")
        check_range("seed", self.seed, 0, (1 << 31) - 1, "a whole number; the same seed draws the same")
        if self.clock is not None:
            check_range("clock", self.clock, 1e-4, 1e4, 'real seconds an emulated second lasts; "auto" finds it')
        if not 1 <= len(self.devices) <= MAX_DEVICES:
            raise ValueError(f"devices: {len(self.devices)} is outside 1..{MAX_DEVICES} on one machine")
        seen: set[str] = set()
        for device in self.devices:
            if device.name in seen:
                raise ValueError(f"devices: {device.name!r} is there twice; give each [[devices]] a name of its own")
            seen.add(device.name)
