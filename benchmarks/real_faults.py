"""SIGKILLs of real processes: agents, coordinator and broker, at random moments and at every durable step by name.

A schedule is a fleet of its own, killed so and so often while it trains, then left alone for two rounds and audited:
what was receipted, lost or folded twice is counted from the stores (tests/audit.py), and every model refolded.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np

from devices.processes import Child
from protocol.errors import SparsefleetError
from protocol.failpoints import FAILPOINTS
from tests.audit import Findings, examine
from tests.real_fleet import ROOT, RealFleet, broker_pid

Victim = Literal["agent", "coordinator", "broker"]
Progress = Callable[[str], None]
Row = Mapping[str, object]

KILLS_A_SCHEDULE = 25
DEVICES = 3
# In turns, the model's inputs and how rounds go: ten chunks a model and an update, so that kills meet transfers (a
# checkpoint is taken every eight); one chunk, so that they meet more rounds; and late updates.
FLEETS = ((80_000, ""), (100, ""), (100, 'mode = "buffered"\nbuffer = 2'))
TRAINING = 'local_steps = 2\ncodec = "all/float32"'
# How long a process lives that is killed at no particular moment, from its start; it begins to serve after a third.
SHORTEST_S, LONGEST_S = 0.2, 6.0
# A failpoint that was not reached in this time never is (what precedes it is done already): the kill comes anyway.
UNREACHED_S = 6.0
# The broker that its coordinator starts again waits twice as long each time: three times are not yet an outage.
BROKER_KILLS_A_LIFE = 2
NOTES = (
    f"real: {DEVICES} agents, a coordinator and its mosquitto as processes, {KILLS_A_SCHEDULE} kills a fleet",
    "agents and coordinator die half at a durable step by name, half at a random moment; recovery is from the kill to "
    "being connected again, which includes the start of Python",
)
TICK_S = 0.005
PATIENCE_S = 60.0


@dataclass(slots=True)
class _Life:
    """A process from its start to its kill, at `at`. serves: what its log says once it is back."""

    victim: Victim
    child: Child
    serves: bytes
    read_from: int
    at: float
    killed_at: float | None = None
    up: bool = False

    def look(self) -> None:
        """Notices that it serves."""
        if not self.up:
            with self.child.log.open("rb") as log:
                log.seek(self.read_from)
                self.up = self.serves in log.read()


@dataclass(slots=True)
class Recoveries:
    """Seconds from each kill to the process, or the broker's clients, serving again."""

    of: dict[str, list[float]] = field(default_factory=dict)

    def note(self, victim: Victim, seconds: float) -> None:
        self.of.setdefault(victim, []).append(seconds)


@dataclass(slots=True)
class _Schedule:
    """One fleet and what is done to it."""

    fleet: RealFleet
    rng: np.random.Generator
    kills: int
    recoveries: Recoveries
    killed: dict[str, int]
    lives: dict[str, _Life] = field(default_factory=dict)
    broker_killed_at: float | None = None
    broker_kills: int = 0

    def run(self) -> Findings:
        self._start("coordinator", None)
        for index in range(self.fleet.devices):
            self._start(f"device-{index:02d}", None)
        left, stuck_at = self.kills, time.monotonic() + PATIENCE_S
        while left:
            for name, life in tuple(self.lives.items()):
                if self._step(name, life):
                    left, stuck_at = left - 1, time.monotonic() + PATIENCE_S
                if not left:
                    break
            if left and self._kill_broker():
                left -= 1
            if time.monotonic() > stuck_at:
                raise SparsefleetError(f"{self.fleet.folder}: nothing could be killed for {PATIENCE_S:.0f} s")
            time.sleep(TICK_S)
        self._await_all()
        self.fleet.end_after(2)
        self.fleet.finish()
        self.fleet.settle()
        return examine(self.fleet.folder)

    def _step(self, name: str, life: _Life) -> bool:
        """Looks at one process; True when it was killed just now, and started again."""
        now = time.monotonic()
        life.look()
        if life.up and life.killed_at is not None:
            self.recoveries.note(life.victim, now - life.killed_at)
            life.killed_at = None
        died = life.child.exit_code is not None
        if died and life.child.exit_code != -signal.SIGKILL:
            raise SparsefleetError(f"{name} ended by itself, exit code {life.child.exit_code}; see {life.child.log}")
        # Whoever is not back yet is left alone, so that every kill has its recovery.
        if not died and (now < life.at or life.killed_at is not None):
            return False
        if not died:
            self.fleet.kill(life.child)
        self.killed[life.victim] = self.killed.get(life.victim, 0) + 1
        self._start(name, now)
        return True

    def _start(self, name: str, killed_at: float | None) -> None:
        victim: Victim = "coordinator" if name == "coordinator" else "agent"
        log = self.fleet.folder / "logs" / f"{name}.log"
        read_from = log.stat().st_size if log.exists() else 0
        failpoint, lifetime_s = self._fate(victim)
        if victim == "coordinator":
            self.fleet.start_coordinator(failpoint=failpoint)
            assert self.fleet.coordinator is not None
            child, self.broker_kills, self.broker_killed_at = self.fleet.coordinator, 0, None
        else:
            self.fleet.start_agent(name, failpoint=failpoint)
            child = self.fleet.agents[name]
        serves = b"connected epoch=" if victim == "coordinator" else b"connected broker="
        at = time.monotonic() + lifetime_s
        self.lives[name] = _Life(victim, child, serves, read_from, at, killed_at)

    def _fate(self, victim: Victim) -> tuple[str | None, float]:
        """Half die at a durable step, reached for the nth time, and half at no particular moment."""
        if self.rng.random() < 0.5:
            return None, float(self.rng.uniform(SHORTEST_S, LONGEST_S))
        # This fleet has a hub.
        ours = [name for name in FAILPOINTS if not name.startswith("agent.gossip")]
        names = [name for name in ours if name.startswith(f"{victim}.")]
        name, nth = names[self.rng.integers(len(names))], int(self.rng.integers(1, 7))
        return f"{name}:{nth * 3 if 'chunk' in name else nth}", UNREACHED_S

    def _kill_broker(self) -> bool:
        coordinator = self.lives["coordinator"]
        if self.broker_killed_at is not None:
            coordinator.look()
            if coordinator.up:
                self.recoveries.note("broker", time.monotonic() - self.broker_killed_at)
                self.broker_killed_at = None
            return False
        # About as often as any other process.
        wanted = self.rng.random() < TICK_S / (LONGEST_S / 2)
        if not wanted or not coordinator.up or self.broker_kills >= BROKER_KILLS_A_LIFE:
            return False
        pid = broker_pid(self.fleet)
        if pid is None or coordinator.child.exit_code is not None:
            return False
        os.kill(pid, signal.SIGKILL)
        self.broker_kills += 1
        self.broker_killed_at = time.monotonic()
        self.killed["broker"] = self.killed.get("broker", 0) + 1
        # Back is when the coordinator has connected once more.
        coordinator.read_from, coordinator.up = coordinator.child.log.stat().st_size, False
        return True

    def _await_all(self) -> None:
        """Nobody dies any more: whoever lives with a failpoint is started without one."""
        for name, life in tuple(self.lives.items()):
            if name != "coordinator":
                self.fleet.kill(life.child)
                self.fleet.start_agent(name)


def run(kills: int, seed: int, progress: Progress) -> list[Row]:
    """Kills processes of real fleets so often; one row. A schedule in which something is lost leaves its folder, and
    the seed and number of it repeat what was chosen, not what the machine did."""
    recoveries, killed = Recoveries(), dict[str, int]()
    found: list[Findings] = []
    sizes = [min(KILLS_A_SCHEDULE, kills - at) for at in range(0, kills, KILLS_A_SCHEDULE)]
    for number, size in enumerate(sizes):
        found.append(_audited(number, size, seed, recoveries, killed))
        last = found[-1]
        if not last.clean:
            progress(f"seed {seed}, schedule {number} is not clean, its folder is kept: {last}")
        progress(
            f"real schedule {number + 1}/{len(sizes)}: {sum(killed.values())} kills, {last.rounds} rounds, "
            f"{last.receipted} receipted, {last.lost} lost, {last.doubled} doubled"
        )
    for victim, seconds in sorted(recoveries.of.items()):
        progress(
            f"{victim}: {killed[victim]} kills, serving again after {median(seconds):.2f} s (median), "
            f"{max(seconds):.2f} s (longest)"
        )
    progress(f"Python and a coordinator's imports alone take {_imports_s():.2f} s")
    return [_row(found, sum(killed.values()), recoveries)]


def _imports_s() -> float:
    """Seconds that a coordinator takes before its first own line: the median of three starts."""
    took = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run((sys.executable, "-c", "import coordinator.process"), cwd=ROOT, check=True)
        took.append(time.monotonic() - began)
    return median(took)


def _row(found: list[Findings], kills: int, recoveries: Recoveries) -> Row:
    return {
        "kind": "real",
        "schedules": len(found),
        "kills": kills,
        "receipted": sum(findings.receipted for findings in found),
        "lost": sum(findings.lost for findings in found),
        "doubled": sum(findings.doubled for findings in found),
        "bit_identical": all(findings.differing is None for findings in found),
        "recovery_s_max": round(max((s for of in recoveries.of.values() for s in of), default=0.0), 3),
        "broken": sum(not findings.clean for findings in found),
    }


def _audited(number: int, kills: int, seed: int, recoveries: Recoveries, killed: dict[str, int]) -> Findings:
    folder = Path(tempfile.mkdtemp(prefix=f"faults-{seed}-{number}-"))
    features, rounding = FLEETS[number % len(FLEETS)]
    fleet = RealFleet(folder, "mosquitto", 100_000, DEVICES, TRAINING, rounding=rounding, features=features)
    try:
        findings = _Schedule(fleet, np.random.default_rng((seed, number)), kills, recoveries, killed).run()
    finally:
        fleet.stop()
    if findings.clean:
        shutil.rmtree(folder)
    return findings
