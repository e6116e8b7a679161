"""One device of a fleet that runs: what it is started with, what it is now, and what was seen of it so far."""

import asyncio
from dataclasses import dataclass, field, replace

from devices.conductor.cables import Cable
from devices.engines.engine import Condition, Engine, InForce, Limits, Start
from devices.fleet.plan import Device
from devices.fleet.record import Calibration, Memory, Presence, Span

# A thousand samples draw any curve; beyond, every second one goes.
_MOST_SAMPLES = 1000


@dataclass(slots=True)
class Member:
    """What a device's life is written down in. Times are of the emulated clock, but `again_at`.

    wanted: whether it is to run, as far as power goes. again_at: when its service starts it again, on our own clock.
    resolved: its last end was seen, so that it is not taken for another. core: the share of one of our cores that is
    one of its board's, as calibrated.
    """

    device: Device
    engine: Engine
    start: Start
    enrolment_port: int = 0
    cable: Cable = field(default_factory=Cable)
    core: float | None = None
    calibration: Calibration | None = None
    in_force: InForce = field(default_factory=lambda: InForce(Limits()))
    enrolled_s: float | None = None
    wanted: bool = False
    again_at: float | None = None
    given_up: bool = False
    resolved: bool = False
    restarts: int = 0
    out_of_memory: int = 0
    in_memory_trouble: bool = False
    now: Condition = field(default_factory=lambda: Condition("absent"))
    cpu_before_s: float = 0.0
    peak_mib: float | None = None
    memory: list[Memory] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    # One thing at a time is done to a device.
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def name(self) -> str:
        return self.device.name

    @property
    def cpu_s(self) -> float:
        """Processor time of this machine, over all its starts."""
        return self.cpu_before_s + self.now.cpu_s

    @property
    def presence(self) -> Presence:
        if not self.wanted or self.now.state != "running":
            return "off"
        return "cut" if self.cable.cut else "on"

    def saw(self, condition: Condition, at_s: float) -> None:
        """One look at it."""
        if condition.started_at != self.now.started_at:
            self.cpu_before_s += self.now.cpu_s
        self.now = condition
        if condition.peak_mib is not None:
            self.peak_mib = max(self.peak_mib or 0.0, condition.peak_mib)
        if condition.memory_mib is not None:
            self.memory.append(Memory(at_s, condition.memory_mib))
            if len(self.memory) > _MOST_SAMPLES:
                del self.memory[::2]
        self.mark(at_s)

    def mark(self, at_s: float) -> None:
        """Has the last span reach until now, or a new one begin where the device is something else."""
        presence = self.presence
        if self.spans and self.spans[-1].presence == presence:
            self.spans[-1] = replace(self.spans[-1], end_s=at_s)
            return
        if self.spans:
            self.spans[-1] = replace(self.spans[-1], end_s=at_s)
        self.spans.append(Span(at_s, at_s, presence))
