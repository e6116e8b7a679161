"""A fleet of one whose agent trains in a child process, on the system's clock."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge_agent.agent import Agent
from edge_agent.child import ChildTrainer
from edge_agent.child_process import ChildProcess, launcher
from edge_agent.data import DataSettings
from edge_agent.link import last_will
from edge_agent.settings import AgentSettings, BrokerSettings, LimitSettings, TrainingSettings
from edge_agent.slots import Slots
from edge_agent.store import AgentStore
from edge_agent.trial import software
from protocol.messages import Task
from tests.agent.test_agent import DEVICE, Fleet
from tests.tiny import TOTAL
from tests.waiting import until

MODEL = (np.arange(1, TOTAL + 1) / 10).astype(np.float32)
TRAINING = TrainingSettings(checkpoint_s=0.1)


@dataclass
class Home(Fleet):
    """A fleet of one whose agent trains in a child, on the system's clock."""

    training: TrainingSettings = TRAINING
    limits: LimitSettings = LimitSettings()  # noqa: RUF009 (frozen)
    # A data source of the test's, in its folder.
    source: str | None = None
    children: list[ChildProcess] = field(default_factory=list)

    def start(self, folder: Path) -> None:
        data = DataSettings(path="shard.npz") if self.source is None else DataSettings(source=self.source)
        broker = BrokerSettings("mqtt://127.0.0.1:1883")
        how = self.training, self.limits, self.eligibility, self.personal
        settings = AgentSettings(DEVICE, "test", "state", broker, data, *how)
        self.store = AgentStore(folder / "state", 1 << 24)
        will = last_will(self.coordinator.topics, DEVICE, self.store.boot)
        self.transport = self.broker.connect(DEVICE, self.coordinator.topics.of_agent(DEVICE), will)
        started = launcher(settings, folder, folder / "state", lambda: None)

        def launch() -> ChildProcess:
            self.children.append(started())
            return self.children[-1]

        rng = np.random.default_rng(1)
        make = None if self.training.process == "same" else lambda assets: ChildTrainer(assets, launch)
        self.agent = Agent(settings, folder, self.store, self.transport, rng, trainer=make, device=self.device)

    def until(self, reached: Callable[[], bool], turns: int = 0) -> None:
        def turned() -> bool:
            self.turn()
            return reached()

        until(turned)

    def close(self) -> None:
        self.agent.stop()
        self.store.close()

    def say(self, **wanted: object) -> Task:
        task = replace(self.coordinator.task(1, MODEL), **wanted)  # type: ignore[arg-type]
        self.coordinator.say(task)
        return task

    def trust(self) -> None:
        """The bundle has passed its trial: what follows is what a committed one gets."""
        slots, digest = Slots(self.store.database, software()), self.coordinator.task(1, MODEL).manifest.digest
        assert slots.begin(digest)
        assert slots.commit(digest)

    def payload(self, number: int = 1) -> bytes:
        self.until(lambda: len(self.coordinator.payloads) == number and not self.store.outbox())
        return self.coordinator.payloads[-1]

    @property
    def checkpoints(self) -> list[Path]:
        return sorted((self.folder / "state" / "blobs").glob("*.checkpoint"))
