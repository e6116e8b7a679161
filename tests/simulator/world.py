"""A whole fleet in one process, in simulated time: the real coordinator and the real agents, and all that goes wrong.

A schedule, which follows from one seed, decides everything: the same schedule gives the same log, byte for byte.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from coordinator.daemon import Coordinator
from coordinator.events import Event
from coordinator.store import Store
from edge_agent.agent import Agent
from edge_agent.store import AgentStore
from tests.simulator.clock import Timeline
from tests.simulator.faults import (
    COORDINATOR,
    HEAL_S,
    BitFlip,
    BrokerDeath,
    ClockJump,
    Cut,
    DiskTrouble,
    Fault,
    Heat,
    Kill,
    Partition,
    Schedule,
    Storm,
)
from tests.simulator.fleet import retry_trials, rng_of, start_coordinator, start_device
from tests.simulator.host import STATE, Host, Process
from tests.simulator.network import FAIR, Network
from tests.simulator.oracle import Oracle

# After the last fault a run of three rounds ends within this many simulated seconds, or never: two heartbeats of 300 s,
# by which a device that the coordinator lost sight of is found again, and the rounds' deadlines.
PROGRESS_S = 1800.0
LONGEST_S = HEAL_S + PROGRESS_S
# Ten times what the longest runs log: one that goes round in circles in no time is stopped.
MOST_LINES = 100_000


@dataclass(slots=True)
class Outcome:
    """What became of a schedule. wrong: sentences, none where every invariant holds. recovery_s: at most so long after
    its start that follows a kill the coordinator took in a message of a device; 0 where others failed too."""

    schedule: Schedule
    wrong: list[str]
    log: list[str]
    kills: int
    receipted: int
    lost: int
    doubled: int
    bit_identical: bool
    recovery_s: float
    seconds: float

    @property
    def digest(self) -> str:
        """Of the whole log."""
        return hashlib.sha256("\n".join(self.log).encode()).hexdigest()


@dataclass(slots=True)
class World:
    """The parts of a run, joined."""

    schedule: Schedule
    timeline: Timeline = field(default_factory=Timeline)
    log: list[str] = field(default_factory=list)
    bugs: list[str] = field(default_factory=list)
    hosts: dict[str, Host] = field(default_factory=dict)
    network: Network = field(init=False)
    oracle: Oracle = field(init=False)

    def __post_init__(self) -> None:
        schedule = self.schedule
        self.network = Network(self.timeline, rng_of(schedule, "network"), self.trace)
        self.oracle = Oracle(schedule, self.hosts)
        self.network.heard = self.oracle.heard
        for name in schedule.machines:
            self.hosts[name] = Host(
                name,
                self.timeline,
                rng_of(schedule, name),
                self.trace,
                self._start_coordinator if name == COORDINATOR else self._start_device,
                lambda notices_s, name=name: self.network.cut(name, notices_s),  # type: ignore[misc]
                schedule.checkpoint_pages,
                self.bugs,
            )
        for fault in schedule.faults:
            self._arrange(fault)
        self._arrange_kills()
        self.timeline.at(HEAL_S, self._heal)

    def trace(self, what: str) -> None:
        self.log.append(f"{self.timeline.now:.6f} {what}")

    def run(self) -> Outcome:
        for host in self.hosts.values():
            host.start()
        coordinator = self.hosts[COORDINATOR]
        while (
            not self._done()
            and coordinator.damage is None
            and self.timeline.now < LONGEST_S
            and len(self.log) < MOST_LINES
        ):
            self.timeline.step()
        wrong = list(self.bugs)
        if not self._done() and coordinator.damage is None:
            wrong.append(
                f"the run did not end within {LONGEST_S:.0f} s and {MOST_LINES} steps, after {self.timeline.now:.1f} s "
                f"and {len(self.log)}: {self._state()}"
            )
        found = self.oracle.judge(finished=not wrong and coordinator.damage is None)
        return Outcome(
            schedule=self.schedule,
            wrong=wrong + found.wrong,
            log=self.log,
            kills=sum(host.deaths for host in self.hosts.values()),
            receipted=found.receipted,
            lost=found.lost,
            doubled=found.doubled,
            bit_identical=found.bit_identical,
            recovery_s=0.0 if self._disturbed else coordinator.longest_recovery_s,
            seconds=self.timeline.now,
        )

    def close(self) -> None:
        """Lets go of the databases, which SQLite would hold for good."""
        for host in self.hosts.values():
            host.life.alive = False
            host.disk.close_databases()

    @property
    def _disturbed(self) -> bool:
        """Whether anything but the coordinator's own start decides when it hears a device again."""
        apart = BitFlip | ClockJump
        return any(
            fault.machine != COORDINATOR if isinstance(fault, Kill) else not isinstance(fault, apart)
            for fault in self.schedule.faults
        )

    def _done(self) -> bool:
        """All rounds are done and every update has its receipt."""
        coordinator = self.hosts[COORDINATOR].process
        if coordinator is None or not isinstance(coordinator.daemon, Coordinator) or not coordinator.daemon.finished:
            return False
        for name, host in self.hosts.items():
            if name == COORDINATOR:
                continue
            if host.process is None or not host.life.alive:
                return False
            daemon, store = host.process.daemon, host.process.store
            assert isinstance(daemon, Agent)
            assert isinstance(store, AgentStore)
            if daemon.job.phase != "idle" or store.outbox():
                return False
        return True

    def _state(self) -> str:
        said = []
        for name, host in self.hosts.items():
            process = host.process
            if process is None:
                said.append(f"{name} is down")
            elif isinstance(process.daemon, Agent) and isinstance(process.store, AgentStore):
                said.append(f"{name} is {process.daemon.job.phase}, {len(process.store.outbox())} wait")
            elif isinstance(process.store, Store):
                said.append(f"{name} has {process.store.opened_round()}")
        return "; ".join(said)

    def _start_coordinator(self, host: Host) -> Process:
        process = start_coordinator(host, self.network, self.schedule, self._emit)
        assert isinstance(process.store, Store)
        self.oracle.coordinator_started(process.store)
        return process

    def _start_device(self, host: Host) -> Process:
        process = start_device(host, self.network, self.schedule)
        if self.timeline.now >= HEAL_S:
            retry_trials(process)
        return process

    def _emit(self, event: Event) -> None:
        self.trace(f"{COORDINATOR}: {event}")
        self.oracle.said(event)

    # Faults

    def _arrange_kills(self) -> None:
        for name, host in self.hosts.items():
            kills = sorted(
                (fault for fault in self.schedule.faults if isinstance(fault, Kill) and fault.machine == name),
                key=lambda kill: -kill.step,
            )
            host.steps.kills = [kill.step for kill in kills]
            host.on_kill(lambda kills=kills, host=host: self._killed(kills, host))  # type: ignore[misc]

    def _killed(self, kills: list[Kill], host: Host) -> tuple[bool, float]:
        """The faults that came due, as one."""
        due = [kill for kill in kills if kill.step <= host.steps.taken]
        del kills[len(kills) - len(due) :]
        return any(kill.power for kill in due), max(kill.down_s for kill in due)

    def _arrange(self, fault: Fault) -> None:
        network, at = self.network, self.timeline.at
        match fault:
            case Kill():
                pass
            case Cut(client, at_s, broker_s, client_s):
                at(at_s, lambda: network.cut(client, broker_s, client_s))
            case Partition(client, at_s, for_s):
                at(at_s, lambda: network.part(client))
                at(at_s + for_s, lambda: network.join(client))
            case BrokerDeath(at_s, for_s, forgets):
                at(at_s, lambda: network.stop_broker(forgets))
                at(at_s + for_s, network.start_broker)
            case Storm(at_s, for_s, weather):
                at(at_s, lambda: setattr(network, "weather", weather))
                at(at_s + for_s, lambda: setattr(network, "weather", FAIR))
            case DiskTrouble(machine, at_s, for_s, trouble):
                platter = self.hosts[machine].platter
                at(at_s, lambda: setattr(platter, "trouble", trouble))
                at(at_s + for_s, lambda: setattr(platter, "trouble", None))
            case BitFlip(machine, at_s, folder, which):
                at(at_s, lambda: self._flip(machine, folder, which))
            case Heat(machine, at_s, for_s):
                at(at_s, lambda: setattr(self.hosts[machine], "temperature_c", 90.0))
                at(at_s + for_s, lambda: setattr(self.hosts[machine], "temperature_c", 40.0))
            case ClockJump(machine, at_s, by_s):
                at(at_s, lambda: setattr(self.hosts[machine], "wall_offset_s", by_s))

    def _flip(self, machine: str, folder: str, which: float) -> None:
        platter = self.hosts[machine].platter
        files = platter.files(STATE / folder)
        if files:
            path = files[int(which * len(files)) % len(files)]
            self.trace(f"{machine}: a bit of {path} flips")
            platter.flip_bit(path)
            # A coordinator whose only updates are damaged says so and ends; an agent fetches what is damaged again.
            self.hosts[machine].may_be_damaged |= machine == COORDINATOR

    def _heal(self) -> None:
        self.trace("all is well again")
        self.network.weather = FAIR
        for name, host in self.hosts.items():
            self.network.join(name)
            host.platter.trouble = None
            host.temperature_c = 40.0
            host.steps.kills.clear()
            if name != COORDINATOR and host.process is not None:
                retry_trials(host.process)


def simulate(schedule: Schedule, *, quiet: bool = True) -> Outcome:
    """Runs a schedule to its end, or to where it would have to have ended."""
    with _silence(quiet):
        world = World(schedule)
        try:
            return world.run()
        finally:
            world.close()


@contextmanager
def _silence(quiet: bool) -> Iterator[None]:
    """What daemons log of faults that are meant is no news."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL if quiet else before)
    try:
        yield
    finally:
        logging.disable(before)
