"""Whose words a training process speaks, and what its agent waits for; of a process that says what it is told to."""

import errno
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from edge_agent import child_wire as wire
from edge_agent.child import PAUSE_S, ChildTrainer
from edge_agent.child_process import ChildProcess, Ended
from edge_agent.runtimes.backends import Selection
from edge_agent.trainer import Refused
from protocol.messages import BlobRef, OptimizerSpec, Task

SELECTED = Selection("numpy", "")


@dataclass
class FakeChild:
    """Says what it is given to say, and never ends by itself."""

    says: list[Any] = field(default_factory=list)
    heard: list[str] = field(default_factory=list)
    leave_by: float = float("inf")

    def send(self, order: object) -> None:
        self.heard.append(type(order).__name__)

    def next(self, _: float) -> Any:
        return self.says.pop(0) if self.says else None

    def close(self) -> None:
        pass


class BrokenDisk:
    def names(self, _: Path) -> tuple[str, ...]:
        return ("half.checkpoint",)

    def remove(self, path: Path) -> None:
        raise OSError(errno.EROFS, "read-only", str(path))


def task(number: int) -> Task:
    blob = BlobRef(bytes(32), 4)
    return Task("r", number, blob, blob, 0, 1, 0, 1, 0.1, OptimizerSpec("sgd"), "all/float32", 1, 60.0)


def trainer(child: FakeChild) -> ChildTrainer:
    blobs: Any = SimpleNamespace(blobs=SimpleNamespace(disk=BrokenDisk(), root=Path("blobs")))
    process: Any = child
    return ChildTrainer(blobs, lambda: process, lambda: 0.0)


def test_what_a_child_says_of_tasks_that_it_has_yet_to_let_go_of_is_not_of_the_next_one() -> None:
    child = FakeChild()
    training = trainer(child)
    for number in (1, 2):
        training.begin(task(number), SELECTED)
        training.drop()
    training.begin(task(3), SELECTED)
    child.says += [wire.Dropped(), Refused("data", "of task 2"), wire.Dropped()]
    assert training.work(0.0) == ()
    child.says.append(Refused("data", "of task 3"))
    assert training.work(0.0) == (Refused("data", "of task 3"),)


def test_a_child_that_dies_while_it_lets_go_on_a_failing_disk_leaves_nothing_to_wait_for() -> None:
    child = FakeChild()
    training = trainer(child)
    training.begin(task(1), SELECTED)
    training.drop()
    child.says.append(Ended("crashed", "killed by SIGKILL"))
    with pytest.raises(OSError, match="read-only"):
        training.work(0.0)
    assert training.wait_s() == float("inf")


def test_a_child_that_cannot_end_is_killed_once_and_not_waited_for_in_a_busy_loop() -> None:
    kills: list[str] = []
    hanging: Any = SimpleNamespace(
        leave_by=PAUSE_S, kill=kills.append, _thread=SimpleNamespace(is_alive=lambda: True), close=lambda: None
    )
    for now in (PAUSE_S - 1, PAUSE_S, PAUSE_S + 10):
        assert not ChildProcess.gone(hanging, now)
    assert (len(kills), hanging.leave_by) == (1, float("inf"))
