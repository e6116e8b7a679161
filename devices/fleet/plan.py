"""A fleet as its file describes it: devices of which boards, on what data, and which faults when."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from devices.fleet.board import Board

EngineName = Literal["podman", "docker", "processes"]
# kill: of the agent alone, which its service starts again. power-cut: everything at once, for a time. cut, restore: the
# link. throttle: `factor` of the processor. clock-jump: by `by_s`. disk-full: nothing more fits on the state's disk.
FaultKind = Literal["kill", "power-cut", "cut", "throttle", "clock-jump", "disk-full"]


@dataclass(frozen=True, slots=True)
class Device:
    """One device of the fleet. native: runs this machine's instructions, not its board's under emulation.

    light: a plain process without limits, whatever the fleet's engine, so that there can be hundreds.
    """

    name: str
    board: Board
    native: bool = True
    light: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """What befalls devices at a time of the emulated clock, and, where it ends, how long it lasts."""

    at_s: float
    do: FaultKind
    devices: tuple[str, ...]
    for_s: float = 0.0
    factor: float = 1.0
    by_s: float = 0.0


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
