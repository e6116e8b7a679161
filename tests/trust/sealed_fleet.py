"""A fleet with identities in one process: the real daemons, real keys, and a broker whose operator hears all of it and
may say anything."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from coordinator import link as coordinator_link
from coordinator.daemon import Coordinator
from coordinator.events import Event, RoundCommitted, UpdateRejected
from coordinator.seals import Seals
from coordinator.store import Store
from edge_agent import link as agent_link
from edge_agent.agent import Agent
from edge_agent.data import DataSettings
from edge_agent.settings import AgentSettings, BrokerSettings
from edge_agent.store import AgentStore
from edge_agent.trusted import Trusted
from protocol.bundle import Bundle
from protocol.envelope import Envelope, decode
from protocol.messages import Body, TaskReport
from protocol.topics import Topics
from protocol.transport import MemoryBroker
from tests import tiny
from tests.coordinator.simulation import examine, make_settings
from tests.trust.office import FLEET, Office

TOPICS = Topics(FLEET)


@dataclass
class Operator(MemoryBroker):
    """The broker, in the hands of somebody who wants to harm the fleet. said: every message that it carried."""

    said: list[tuple[str, bytes]] = field(default_factory=list)

    def deliver(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.said.append((topic, payload))
        super().deliver(topic, payload, retain=retain)

    def of(self, kind: type, topic: str = "") -> list[tuple[str, bytes, Envelope]]:
        """The messages of a type that it carried, on topics that hold these words."""
        read = [(where, payload, decode(payload)) for where, payload in self.said if topic in where]
        return [(w, p, e) for w, p, e in read if isinstance(e, Envelope) and isinstance(e.body, kind)]

    def bodies(self, kind: type, topic: str = "") -> list[Body]:
        return [envelope.body for _, _, envelope in self.of(kind, topic)]


class SealedDevice:
    """An enrolled device with an agent at work. wall_s: its clock, None for the office's."""

    def __init__(self, fleet: "SealedFleet", name: str) -> None:
        self.fleet, self.name = fleet, name
        self.folder = fleet.folder / name
        self.state = self.folder / "state"
        self.wall_s: float | None = None
        self.folder.mkdir()
        tiny.write_shard(self.folder / "shard.npz", seed=len(fleet.devices))
        fleet.office.enrol(name, self.state)
        self.start()

    def start(self) -> None:
        fleet, settings = self.fleet, self.settings()
        self.store = AgentStore(self.state, 1 << 24)
        self.trusted = Trusted(self.state, FLEET, self.store, self.wall)
        will = agent_link.last_will(TOPICS, self.name, self.store.boot, self.trusted)
        self.transport = fleet.operator.connect(self.name, TOPICS.of_agent(self.name), will)
        rng = np.random.default_rng(len(fleet.devices))
        self.agent = Agent(settings, self.folder, self.store, self.transport, rng, trusted=self.trusted, wall=self.wall)

    def wall(self) -> float:
        return self.fleet.office.now_s if self.wall_s is None else self.wall_s

    def settings(self) -> AgentSettings:
        return AgentSettings(
            self.name, FLEET, "state", BrokerSettings("mqtt://127.0.0.1:1883"), DataSettings("shard.npz")
        )

    def stop(self) -> None:
        self.fleet.operator.cut(self.name)
        self.store.close()

    def work(self, now: float) -> None:
        while (event := self.transport.poll(0)) is not None:
            self.agent.handle(event, now)
        self.agent.advance(now)


class SealedFleet:
    """One coordinator, devices by name, one clock for all that is not the wall's, which is the office's."""

    def __init__(self, folder: Path, office: Office, *devices: str, count: int = 3) -> None:
        self.folder, self.office, self.operator = folder, office, Operator()
        self.devices: dict[str, SealedDevice] = {}
        self.events: list[Event] = []
        self.now, self.runs = 100.0, 0
        self.bundle = tiny.write_bundle(folder / "bundle")
        made = make_settings(folder, count=count, devices=max(1, len(devices)))
        self.settings = replace(made, fleet=FLEET)
        self.start()
        for name in devices:
            self.devices[name] = SealedDevice(self, name)

    def start_on(self, bundle: Bundle) -> None:
        """The coordinator ends, and one begins a run on another bundle; devices start anew too."""
        self.kill_coordinator()
        self.bundle, self.runs = bundle, self.runs + 1
        self.start()
        for device in self.devices.values():
            device.stop()
            device.start()

    def start(self) -> None:
        self.store = Store(self.folder / f"state-{self.runs}", self.settings.limits)
        self.seals = Seals(self.office.keys, self.office.trust, lambda: self.office.now_s, required=True)
        self.seals.take_bundle(self.bundle)
        will = coordinator_link.last_will(TOPICS, self.store.run, self.store.epoch, self.store.instance, self.seals)
        self.transport = self.operator.connect("coordinator", TOPICS.of_coordinator(), will)
        self.coordinator = Coordinator(
            *(self.settings, self.bundle, self.store, self.transport, lambda: self.now, self.events.append, examine),
            wall=lambda: self.office.now_s,
            seals=self.seals,
        )

    def kill_coordinator(self) -> None:
        self.operator.cut("coordinator")
        self.seals.close()
        self.store.close()

    def close(self) -> None:
        self.kill_coordinator()
        for device in self.devices.values():
            device.store.close()

    def turn(self) -> None:
        while (event := self.transport.poll(0)) is not None:
            self.coordinator.handle(event, self.now)
        self.coordinator.advance(self.now)
        for device in self.devices.values():
            if device.transport.connected or device.transport.events:
                device.work(self.now)
        self.now += 0.05

    def turns(self, seconds: float) -> None:
        for _ in range(round(seconds / 0.05)):
            self.turn()

    def until(self, reached: object, turns: int = 3000) -> None:
        assert callable(reached)
        for _ in range(turns):
            if reached():
                return
            self.turn()
        raise AssertionError(f"in vain; {self.events[-5:]}; refused {self.reasons}; reports {self.reports[-3:]}")

    @property
    def committed(self) -> list[RoundCommitted]:
        return [event for event in self.events if isinstance(event, RoundCommitted)]

    @property
    def reasons(self) -> set[str]:
        """Why the coordinator refused anything."""
        return {event.reason for event in self.events if isinstance(event, UpdateRejected)}

    @property
    def reports(self) -> list[TaskReport]:
        return [body for body in self.operator.bodies(TaskReport) if isinstance(body, TaskReport)]
