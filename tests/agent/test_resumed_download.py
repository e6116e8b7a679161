"""A download that is killed between any two messages goes on where it was: at most a window is fetched again."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocol.messages import WINDOW, BlobRef, Need
from protocol.transport import MemoryBroker
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_agent import DEVICE, Fleet
from tests.tiny import CLASSES, write_bundle, write_shard

# A model of 26 chunks: some three windows.
FEATURES = 200_000


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    bundle = write_bundle(tmp_path / "bundle", features=FEATURES)
    write_shard(tmp_path / "shard.npz", features=FEATURES, examples=4)
    broker = MemoryBroker()
    made = Fleet(tmp_path, broker, FakeCoordinator(broker, bundle), None, None)  # type: ignore[arg-type]
    made.start(tmp_path)
    yield made
    made.store.close()


def asked(fleet: Fleet, model: BlobRef) -> list[int]:
    """Every chunk of the model that was asked for, as often as it was."""
    needs = [body for body in fleet.coordinator.heard if isinstance(body, Need) and body.digest == model.digest]
    return [index for need in needs for index in need.indices]


def messages(fleet: Fleet, count: int) -> int:
    """The agent takes so many messages in, and no more; how many there were."""
    taken = 0
    while taken < count:
        event = fleet.transport.poll(0)
        if event is None:
            fleet.agent.advance(fleet.now)
            fleet.coordinator.work(fleet.now)
            fleet.now += 0.01
            if not fleet.transport.events:
                break
            continue
        fleet.agent.handle(event, fleet.now)
        fleet.agent.advance(fleet.now)
        taken += 1
    return taken


@pytest.mark.parametrize("step", [1, 3, 5, 6, 9, 13])
def test_a_kill_after_any_message_costs_at_most_a_window(fleet: Fleet, step: int) -> None:
    task = fleet.coordinator.task(1, np.zeros((FEATURES + 1) * CLASSES, np.float32), steps=1)
    fleet.coordinator.say(task)
    fleet.until(lambda: bool(asked(fleet, task.model)))
    kills = 0
    while kills < 4 and not fleet.store.blobs.has(task.model.digest):
        messages(fleet, step)
        # What was on its way when the process was killed is lost with its connection.
        fleet.broker.cut(DEVICE)
        fleet.restart()
        kills += 1
    fleet.until(lambda: fleet.store.blobs.has(task.model.digest))
    again = len(asked(fleet, task.model)) - task.model.chunks
    assert set(asked(fleet, task.model)) == set(range(task.model.chunks))
    assert again <= kills * WINDOW
