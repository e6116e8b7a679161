"""What an engine does for a fleet: it starts devices within limits, says which are in force, and takes them away."""

import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from devices.fleet.board import Architecture
from protocol.errors import SparsefleetError


class EngineError(SparsefleetError):
    """An engine refused, or cannot do what was asked; the text has its own words and what to do."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device may take: cores of this machine (a share of time), memory, and its state's disk. None: no limit."""

    cores: float | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None


@dataclass(frozen=True, slots=True)
class InForce:
    """Limits as read back from where the kernel keeps them. why: for each that is not in force, the reason."""

    limits: Limits
    why: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """A device to be started. etc, state, data: folders here, for its configuration, its state, and its examples.

    image: None for an engine without images. clock: a file that holds its offset in seconds, read while it runs.
    """

    fleet: str
    device: str
    architecture: Architecture
    limits: Limits
    etc: Path
    state: Path
    data: Path
    image: str | None = None
    clock: Path | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Inside:
    """Where a device finds its folders, for what is written into its configuration, and the file of its clock.

    clock: None where its clock is this machine's.
    """

    etc: Path
    state: Path
    data: Path
    clock: Path | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """How a device is now, and what it has taken since its start. Memory is of the whole device.

    exit_code: 128 and the signal's number, where one ended it; None where nobody saw it.
    """

    state: Literal["absent", "created", "running", "paused", "ended"]
    exit_code: int | None = None
    out_of_memory: bool = False
    started_at: float | None = None
    cpu_s: float = 0.0
    memory_mib: float | None = None
    peak_mib: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. remedy: what to install or change, unless ok."""

    name: str
    state: Literal["ok", "warning", "error"]
    detail: str
    remedy: str = ""


class Engine(Protocol):
    """podman, docker, or plain processes. A device's name in it is its fleet's and its own.

    In this order: prepare, listen, run (to enrol), start. `remove` undoes all of it, also from another process.
    Methods raise EngineError, with the engine's own words, where it refuses.
    """

    name: str

    def check(self) -> tuple[Finding, ...]:
        """Whether it is there, may be used and enforces limits; starts nothing that stays."""

    def prepare(self, start: Start) -> None:
        """Makes what outlives the device's starts and ends: its loopback, and the disk that its state is on."""

    def inside(self, start: Start) -> Inside: ...

    def start(self, start: Start, words: Sequence[str]) -> None:
        """Starts a device that was prepared, with a command of its own; what it prints is kept for `logs`."""

    def run(self, start: Start, words: Sequence[str], timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """Runs one command in a device like it, to its end, and takes that away: for enrolment and calibration."""

    def listen(self, fleet: str, device: str, port: int) -> socket.socket:
        """A listening socket on the device's own loopback, for the end of its link; it has no other network.

        It stays through ends and starts. Its port is another where the device shares our loopback.
        """

    def in_force(self, fleet: str, device: str) -> InForce: ...

    def throttle(self, fleet: str, device: str, cores: float | None) -> None: ...

    def kill(self, fleet: str, device: str) -> None:
        """SIGKILL to everything in it; returns when it has ended."""

    def cut_power(self, fleet: str, device: str) -> bool:
        """A kill at which its disk loses what was not synced. False: the disk could not, so it was a kill alone."""

    def stop(self, fleet: str, device: str, grace_s: float) -> None: ...

    def again(self, fleet: str, device: str) -> None:
        """Starts one that has ended, with what it had."""

    def condition(self, fleet: str, device: str) -> Condition: ...

    def logs(self, fleet: str, device: str, *, follow: bool = False) -> Sequence[str]:
        """The command line that prints its log."""

    def execute(self, fleet: str, device: str, words: Sequence[str], *, terminal: bool = False) -> Sequence[str]:
        """The command line that runs a command in it."""

    def devices(self, fleet: str) -> tuple[str, ...]:
        """Those of a fleet that it has, ended ones too."""

    def fleets(self) -> tuple[str, ...]:
        """Those that it has devices of."""

    def remove(self, fleet: str) -> None:
        """Ends and takes away all that `start` made of a fleet, and nothing else."""
