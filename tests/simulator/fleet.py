"""What the simulated fleet works with: bundles, data and settings, and how its real daemons are put together."""

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np

from coordinator import link as coordinator_link
from coordinator.daemon import Coordinator
from coordinator.events import Emit
from coordinator.process import take_turn
from coordinator.settings import (
    DownlinkSettings,
    EvaluationSettings,
    LimitSettings,
    RoundSettings,
    ServerSettings,
    Settings,
    TrainingSettings,
)
from coordinator.store import Store
from coordinator.trust_settings import FoldSettings
from edge_agent import link as agent_link
from edge_agent import settings as agent_settings
from edge_agent.agent import Agent
from edge_agent.daemon import give_back
from edge_agent.data import DataSettings
from edge_agent.eligibility import Conditions, EligibilitySettings
from edge_agent.runtimes.engine import Evaluation, Vector
from edge_agent.slots import Slots
from edge_agent.store import AgentStore
from edge_agent.trial import software
from protocol.bundle import Bundle
from protocol.topics import Topics
from tests.simulator.faults import COORDINATOR, Schedule
from tests.simulator.host import STATE, Host, Process
from tests.simulator.network import Network, SimulatedTransport
from tests.tiny import write_bundle, write_shard

FLEET = "simulated"
# So many features of two classes: a model of 42 values, and one that takes three chunks.
SMALL, LARGE = 20, 20_000
HOTTEST_C = 80.0
EXAMPLES = 12
# A device holds the bundle, a model and an update or two; and not much more.
DEVICE_LIMIT_BYTES = 1 << 20
COORDINATOR_LIMIT_MIB = 16
# Collecting garbage takes longer than a whole run does; only those that wait for long let go of their data.
UNLOAD_S = 300.0
# What cannot be measured in a simulation, as an agent would say it.
PEAK_MIB = 64.0


@dataclass(frozen=True, slots=True)
class Material:
    """Files that no fault touches: they are no part of anybody's state. folder: of the devices' data."""

    bundle: Bundle
    folder: Path
    features: int


_folder = tempfile.TemporaryDirectory(prefix="simulated-fleet-")


@cache
def material(large: bool) -> Material:
    features = LARGE if large else SMALL
    root = Path(_folder.name) / str(features)
    return Material(write_bundle(root / "bundle", features=features), root, features)


@cache
def shard(device: str, large: bool) -> Path:
    found = material(large)
    seed = int(device.rpartition("-")[2])
    return write_shard(found.folder / f"{device}.npz", examples=EXAMPLES + 2 * seed, seed=seed, features=found.features)


def coordinator_settings(schedule: Schedule) -> Settings:
    return Settings(
        fleet=FLEET,
        bundle="read by the simulation",
        state=str(STATE),
        seed=schedule.seed % 1000,
        rounds=RoundSettings(
            count=schedule.rounds,
            devices=schedule.wanted,
            deadline_s=schedule.deadline_s,
            minimum=schedule.minimum,
            over_select=schedule.over_select,
            mode="sync" if schedule.buffer is None else "buffered",
            buffer=schedule.buffer,
            late_hours=schedule.late_hours,
            staleness=schedule.staleness,
        ),
        training=TrainingSettings(batch_size=4, learning_rate=0.1, local_steps=3, codec=schedule.codec),
        server=ServerSettings(step="momentum" if schedule.momentum else "add"),
        downlink=DownlinkSettings(schedule.downlink),
        evaluation=EvaluationSettings(data="unread: the simulation brings its own"),
        # So that the oracle needs no opinion on what is too large.
        fold=FoldSettings(clip="none"),
        limits=LimitSettings(disk_mib=COORDINATOR_LIMIT_MIB, weight=0.0),
    )


def device_settings(device: str, schedule: Schedule) -> agent_settings.AgentSettings:
    return agent_settings.AgentSettings(
        device=device,
        fleet=FLEET,
        state=str(STATE),
        broker=agent_settings.BrokerSettings("mqtt://127.0.0.1:1883"),
        data=DataSettings(path=str(shard(device, schedule.large))),
        # A checkpoint after every step, so that kills and power cuts fall around it too.
        training=agent_settings.TrainingSettings(backend="numpy", checkpoint_s=1e-9, idle_unload_s=UNLOAD_S),
        eligibility=EligibilitySettings(most_temperature_c=HOTTEST_C, interval_s=1.0, wait_s=5.0),
    )


def examine(model: Vector) -> Evaluation:
    """Not learning, but a function of the model alone."""
    loss = float(np.abs(model).mean())
    return Evaluation(loss, {"accuracy": 1.0 / (1.0 + loss)}, 10)


def start_coordinator(host: Host, network: Network, schedule: Schedule, emit: Emit) -> Process:
    """As coordinator/process.py does."""
    settings, bundle = coordinator_settings(schedule), material(schedule.large).bundle
    draw = host.rng.getrandbits
    store = Store(STATE, settings.limits, host.disk, host.wall, lambda: f"{host.rng.getrandbits(48):012x}", draw)
    store.belongs_to(bundle.digest, settings.bundle, settings.fleet)
    topics = Topics(settings.fleet)
    will = coordinator_link.last_will(topics, store.run, store.epoch, store.instance)
    transport = SimulatedTransport(network, COORDINATOR, topics.of_coordinator(), will, host.life, host.wake)
    daemon = Coordinator(settings, bundle, store, transport, host.watch.read, emit, examine, host.wall)
    return Process(
        daemon,
        transport,
        lambda: take_turn(daemon, transport, host.watch.read, 0.0, lambda: None),
        lambda fault: None,
        lambda: daemon.recover(host.watch.read()),
        store,
    )


def start_device(host: Host, network: Network, schedule: Schedule) -> Process:
    """As edge_agent/daemon.py does."""
    settings = device_settings(host.name, schedule)
    store = AgentStore(STATE, DEVICE_LIMIT_BYTES, host.disk, host.rng.getrandbits)
    topics = Topics(settings.fleet)
    will = agent_link.last_will(topics, settings.device, store.boot)
    transport = SimulatedTransport(network, host.name, topics.of_agent(host.name), will, host.life, host.wake)
    rng = np.random.Generator(np.random.PCG64(host.rng.getrandbits(64)))
    daemon = Agent(
        settings,
        Path(),
        store,
        transport,
        rng,
        None,
        host.watch,
        lambda: PEAK_MIB,
        device=Thermometer(host),
        wall=host.wall,
    )

    def turn() -> float:
        wait_s = daemon.advance(host.watch.read())
        event = transport.poll(0.0)
        if event is None:
            return wait_s
        daemon.handle(event, host.watch.read())
        return 0.0

    return Process(daemon, transport, turn, lambda fault: give_back(daemon, fault), lambda: None, store)


def retry_trials(device: Process) -> None:
    """What an operator does about a bundle whose trial was killed too often, by nothing that was wrong with it."""
    assert isinstance(device.store, AgentStore)
    slots = Slots(device.store.database, software())
    for slot in slots.all():
        if slot.state == "failed":
            slots.retry(slot.digest)


@dataclass(frozen=True, slots=True)
class Thermometer:
    """All that is known of a simulated device."""

    host: Host

    def conditions(self, wall_s: float, *, training: bool) -> Conditions:
        if self.host.temperature_c > HOTTEST_C:
            self.host.trace(f"{self.host.name}: is too hot to train")
        return Conditions(temperature_c=self.host.temperature_c)

    def written_bytes(self) -> int | None:
        return None


def rng_of(schedule: Schedule, name: str) -> Random:
    """Each part of a run draws from numbers of its own, so that one more draw of one changes no other."""
    return Random(f"{schedule.seed} {name}")
