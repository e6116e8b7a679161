"""Calibration carried out: the reference step is timed in devices, at full speed one kind by one.

Within quotas all kinds of board are timed at once, as they will run: their quotas fit this machine together.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

from devices.conductor.fleet_settings import SHARD
from devices.conductor.raising import agent_words
from devices.engines.engine import Engine, EngineError, Limits, Start
from devices.fleet.board import Architecture
from devices.fleet.calibration import TOLERANCE, Goal, verdict
from devices.fleet.clock import Clock, runs
from devices.fleet.forecast import Machine, forecast
from devices.fleet.plan import REFERENCE, FleetPlan
from devices.fleet.record import Calibration
from devices.fleet.reference import read_timing, timing_command
from devices.workspace import BUNDLE

# Steps at full speed: some tenths of a second here, some seconds under emulation.
_FULL_SPEED_STEPS = 100
_EMULATED_STEPS = 15
# A machine that does something else meanwhile is at its full speed in the best of so many runs.
_RUNS = 3
# One is enough on a quiet machine.
_CORRECTIONS = 2
# Half of what a calibration may be off.
_GOOD = TOLERANCE / 2
_RUN_S = 600.0


@dataclass(frozen=True, slots=True)
class Share:
    """What one kind of device gets: of a core of ours for one of its own, and how good that was."""

    cores: float
    calibration: Calibration | None = None


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The clock, what this emulation is not, and each limited device's share by its name."""

    clock: Clock
    notes: tuple[str, ...] = ()
    shares: Mapping[str, Share] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where the step is timed: an engine, images by architecture, a folder of its own, a bundle and examples."""

    engine: Engine
    images: Mapping[Architecture, str]
    folder: Path
    bundle: Path
    shard: Path

    def begin(self, fleet: str, architecture: Architecture, kind: str) -> Start:
        """A device that only times; its examples are beside its bundle. kind: tells those of an architecture apart."""
        own = self.folder / f"{REFERENCE}-{architecture}-{kind}"
        etc, state, data = (own / name for name in ("etc", "state", "data"))
        for path in (etc, state, data):
            path.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.bundle, data / BUNDLE, dirs_exist_ok=True)
        shutil.copyfile(self.shard, data / SHARD)
        start = Start(
            fleet=fleet,
            device=own.name,
            architecture=architecture,
            limits=Limits(),
            etc=etc,
            state=state,
            data=data,
            image=self.images[architecture],
        )
        self.engine.prepare(start)
        return start

    def time_ms(self, start: Start, steps: int, *, full_speed: bool = False) -> float:
        """A step by a real clock. Raises EngineError."""
        data = self.engine.inside(start).data
        words = (*agent_words(self.engine), *timing_command(data / BUNDLE, data / SHARD, steps))
        done = self.engine.run(start, words, _RUN_S)
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise EngineError(f"the reference step cannot be timed ({done.returncode}): {said[-1000:]}")
        return read_timing(done.stdout, full_speed=full_speed)


# A board's name, its step and memory, and the architecture that it runs here.
_Kind = tuple[str, float, int, Architecture]


def calibrate(plan: FleetPlan, bench: Bench, machine: Machine, say: Callable[[str], None]) -> Calibrated:
    """Full speed, the clock that follows, and a quota for each kind of device, measured and corrected."""
    host = machine.architecture
    kinds: dict[str, _Kind] = {
        device.name: (device.board.name, device.board.step_ms, device.board.memory_mib, runs(device, host))
        for device in plan.devices
        if device.calibrated
    }
    speed: dict[Architecture, float] = {}
    for architecture in sorted({kind[-1] for kind in kinds.values()}):
        start = bench.begin(plan.name, architecture, "full-speed")
        steps = _FULL_SPEED_STEPS if architecture == host else _EMULATED_STEPS
        speed[architecture] = min(bench.time_ms(start, steps, full_speed=True) for _ in range(_RUNS))
        say(f"{architecture}: {speed[architecture]:.2f} ms a step at full speed")
    expected = forecast(plan, replace(machine, full_speed_ms=speed))
    found = _shares(plan.name, bench, list(dict.fromkeys(kinds.values())), speed, expected.clock, say)
    shares = {device.name: Share(device.cores) for device in plan.devices if device.cores is not None}
    return Calibrated(expected.clock, expected.notes, shares | {name: found[kind] for name, kind in kinds.items()})


def _shares(
    fleet: str,
    bench: Bench,
    kinds: Sequence[_Kind],
    speed: Mapping[Architecture, float],
    clock: Clock,
    say: Callable[[str], None],
) -> dict[_Kind, Share]:
    """Each kind's, timed in a device of its own, all at once."""
    found: dict[_Kind, Share] = {}
    pool = ThreadPoolExecutor(max(1, len(kinds)))
    try:
        timing = {}
        for number, kind in enumerate(kinds, 1):
            _, step_ms, memory_mib, architecture = kind
            start = bench.begin(fleet, architecture, str(number))
            goal = Goal(step_ms, speed[architecture], clock)
            timing[pool.submit(_share, bench, start, goal, memory_mib)] = kind
        for done in as_completed(timing):
            kind, share = timing[done], done.result()
            found[kind] = share
            assert share.calibration is not None
            say(f"{kind[0]}, {kind[-1]}: {verdict(share.calibration)}")
    finally:
        # Whoever is interrupted takes the devices away, which ends what is still timed in them.
        pool.shutdown(wait=False, cancel_futures=True)
    return found


def _share(bench: Bench, start: Start, goal: Goal, memory_mib: int) -> Share:
    """A first quota, what a step takes within it, and corrections; the best one is taken, and what it took reported."""
    tried: list[Share] = []
    quota: float | None = goal.first
    # A run begins with a start within the quota, which takes longer than its steps: no more of them than are needed.
    while quota is not None and (not tried or (len(tried) <= _CORRECTIONS and _error(tried[-1]) > _GOOD)):
        measured = bench.time_ms(_within(start, quota, memory_mib), goal.steps)
        tried.append(Share(quota, goal.measured(measured)))
        quota = goal.corrected(quota, measured)
    return min(tried, key=_error)


def _error(share: Share) -> float:
    return abs(share.calibration.error) if share.calibration else 0.0


def _within(start: Start, quota: float, memory_mib: int) -> Start:
    return replace(start, limits=Limits(quota, memory_mib))
