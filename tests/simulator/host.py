"""A machine: its disk and clocks, and the process on it, which is started again whenever it ends."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from coordinator.daemon import Coordinator
from coordinator.store import Store
from edge_agent.agent import Agent
from edge_agent.store import AgentStore
from protocol.database import is_damage
from protocol.disk import disk_named, is_disk_trouble
from protocol.errors import DamagedError, SparsefleetError
from tests.simulator.clock import Timeline, Watch
from tests.simulator.disk import Platter, SimulatedDisk
from tests.simulator.life import Killed, Life, Steps
from tests.simulator.network import SimulatedTransport

# What the loops of coordinator/process.py and edge_agent/daemon.py wait at the most, and after a fault.
LONGEST_WAIT_S = 60.0
PAUSE_AFTER_FAULT_S = 1.0
MAX_FAULTS = 5
# What one turn of a loop takes, and each look at the clock while training.
TURN_S, COMPUTE_S = 0.001, 0.01
# A supervisor starts what ended by itself again after so long.
RESTART_S = 5.0
STATE = Path("/state")
# Boards without a battery begin here; this one is right, until a clock jumps.
WALL_S = 1_700_000_000.0


@dataclass(slots=True)
class Process:
    """What a start made. turn: one of its loop, which says in how many seconds something will be due. give_back: what
    the loop does with a fault at once. recover: and before its next turn."""

    daemon: Coordinator | Agent
    transport: SimulatedTransport
    turn: Callable[[], float]
    give_back: Callable[[Exception], None]
    recover: Callable[[], None]
    store: Store | AgentStore


@dataclass(slots=True)
class Host:
    """build: makes the process; may raise as its command does. hang_up: breaks its connection, which the broker notices
    after so many seconds. bugs: what no fault explains. damage: what it said when
    it ended because of flipped bits, where those are expected."""

    name: str
    timeline: Timeline
    rng: Random
    trace: Callable[[str], None]
    build: Callable[["Host"], Process]
    hang_up: Callable[[float], None]
    checkpoint_pages: int
    bugs: list[str]
    platter: Platter = field(init=False)
    steps: Steps = field(init=False)
    watch: Watch = field(init=False)
    life: Life = field(init=False)
    disk: SimulatedDisk = field(init=False)
    process: Process | None = None
    wall_offset_s: float = 0.0
    # Of a device, which may train below its limit.
    temperature_c: float = 40.0
    may_be_damaged: bool = False
    damage: str | None = None
    deaths: int = 0
    recovering_since: float | None = None
    longest_recovery_s: float = 0.0
    _down: Callable[[], tuple[bool, float]] = field(init=False)
    _turn: int = 0
    _paused_until: float = 0.0
    _faults: int = 0
    _recovering: bool = False

    def __post_init__(self) -> None:
        self.platter = Platter(self.rng)
        self.steps = Steps(lambda what: self.trace(f"{self.name}: {what}"))
        self.watch = Watch(self.timeline, COMPUTE_S)
        self._down = lambda: (False, 0.1)

    def wall(self) -> float:
        return WALL_S + self.wall_offset_s + self.timeline.now

    def on_kill(self, down: Callable[[], tuple[bool, float]]) -> None:
        """down: whether the power goes with the process, and for how long it is away."""
        self._down = down

    def start(self) -> None:
        self.trace(f"{self.name}: starts")
        if self.deaths:
            self.recovering_since = self.timeline.now
        self.life = Life(self.steps)
        self.disk = SimulatedDisk(self.platter, self.life, self.checkpoint_pages)
        try:
            with disk_named(STATE):
                self.process = self.build(self)
        except Killed:
            self._die()
        except SparsefleetError as error:
            self._end(error)
        else:
            self._again(TURN_S)

    def wake(self) -> None:
        """Something arrived."""
        self._again(max(TURN_S, self._paused_until - self.timeline.now))

    def _again(self, seconds: float) -> None:
        self._turn += 1
        turn, life = self._turn, self.life
        self.timeline.after(seconds, lambda: self._take_turn(turn, life))

    def _take_turn(self, turn: int, life: Life) -> None:
        if turn != self._turn or not life.alive or self.process is None:
            return
        process = self.process
        self.watch.spent_s = 0.0
        try:
            if self._recovering:
                process.recover()
                self._recovering = False
            wait = process.turn()
            self._faults = 0
            self._look_whether_recovered(process)
        except Killed:
            self._die()
        except Exception as error:  # noqa: BLE001
            self._fault(process, error)
        else:
            busy = process.transport.waiting or wait <= 0
            self._again(self.watch.spent_s + (TURN_S if busy else max(TURN_S, min(wait, LONGEST_WAIT_S))))

    def _look_whether_recovered(self, process: Process) -> None:
        if self.recovering_since is not None and process.transport.taken:
            self.longest_recovery_s = max(self.longest_recovery_s, self.timeline.now - self.recovering_since)
            self.recovering_since = None

    def _fault(self, process: Process, error: Exception) -> None:
        """As the daemons' loops: once more after a pause, unless it cannot be helped."""
        self.trace(f"{self.name}: fault {type(error).__name__}: {error}")
        disk = is_disk_trouble(error)
        if not disk:
            self._faults += 1
            self._suspect(error)
        if self._faults >= MAX_FAULTS or is_damage(error) or isinstance(error, DamagedError):
            self._end(error)
            return
        try:
            process.give_back(error)
        except Killed:
            self._die()
        except Exception as second:  # noqa: BLE001
            self._end(second)
        else:
            self._recovering = True
            self._paused_until = self.timeline.now + PAUSE_AFTER_FAULT_S
            self._again(PAUSE_AFTER_FAULT_S)

    def _suspect(self, error: Exception) -> None:
        """A bug, unless bits flipped and that is what it says."""
        if self.may_be_damaged and isinstance(error, DamagedError):
            self.damage = str(error)
        else:
            self.bugs.append(f"{self.name}: {''.join(traceback.format_exception(error))}")

    def _end(self, error: Exception) -> None:
        """The process gives up, saying why."""
        self.trace(f"{self.name}: ends: {error}")
        if self.platter.trouble is None and not is_disk_trouble(error):
            self._suspect(error)
        self._gone(power=False)
        self.timeline.after(RESTART_S, self.start)

    def _die(self) -> None:
        power, seconds = self._down()
        self.trace(f"{self.name}: dead power={power}")
        self.deaths += 1
        self._gone(power)
        self.timeline.after(seconds, self.start)

    def _gone(self, power: bool) -> None:
        self.life.end()
        self._turn += 1
        self.process, self._faults, self._recovering, self._paused_until = None, 0, False, 0.0
        self.disk.close_databases()
        self.platter.locked.clear()
        if power:
            self.platter.cut_power()
        # The system resets the connection of a process that ended; of a machine without power nobody hears.
        self.hang_up(90.0 if power else 0.0)
