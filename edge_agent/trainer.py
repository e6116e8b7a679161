"""The seam between the agent and what trains for it: one task at a time, begun, heard of, and let go of.

`same_process.SameProcess` trains in the caller's thread, for the simulator and for tests; `child.ChildTrainer` in a
process of its own. The same task, data and seed give the same bits in both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from edge_agent.progress import Because
from edge_agent.runtimes.backends import Selection
from edge_agent.runtimes.engine import Vector
from edge_agent.training import Trained
from protocol.messages import HeldOut, Task


@dataclass(frozen=True, slots=True)
class Facts:
    """What is installed where training happens: the runtime by name, and why a backend does not run there, with the
    remedy; a backend that is not in `refused` may run."""

    runtime: str
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ready:
    """The task can be trained, or trained on: runtime, data and model are at hand. left_out: examples and files that
    cannot be used."""

    examples: int
    backend: str
    done: int
    total_steps: int
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Unusable:
    """The selected backend does not load this bundle's graphs, or computes something else with them. reason: as of
    the error that is to be raised where no other backend is left."""

    backend: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The task cannot be trained here; an operator could mend it."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Broken:
    """Training the task went wrong, and it was let go of."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Leg:
    """Steps of a task with `until`, between two exchanges with neighbours, from a model of this device's own:
    float32[total]. steps: 0 has the model measured on what is held out. momentum: float32[n] that an optimiser which
    keeps one begins with. seed: orders the examples and drops units."""

    steps: int
    seed: int
    model: Vector
    momentum: Vector | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """All steps are done, of a task with `until` those of a leg. peak_mib: of the training process, where it is one of
    its own. held_out: of the task's model, before the first; own: of the model of a leg without steps."""

    trained: Trained
    peak_mib: float | None = None
    held_out: HeldOut | None = None
    own: HeldOut | None = None


@dataclass(frozen=True, slots=True)
class Proven:
    """The first steps of a bundle's trial are done, `done` in all, and everything was finite."""

    done: int


@dataclass(frozen=True, slots=True)
class Died:
    """The training process ended in a bundle's trial, and the task was let go of."""

    cause: str


News = Ready | Unusable | Refused | Broken | Finished | Proven | Died


class Trainer(Protocol):
    """Trains one task at a time. All calls come from one thread, and none waits long but the first `facts`."""

    @property
    def done(self) -> int:
        """How many steps of the task in hand are done, as far as is known here."""

    def facts(self) -> Facts:
        """What is installed. Raises ConfigurationError where no training process can be started."""

    def begin(self, task: Task, selected: Selection, trial_steps: int = 0) -> None:
        """Takes on a task whose files are all on disk, in place of any other; `work` says what becomes of it. From its
        checkpoint, where there is one. trial_steps: after which `Proven` is due, where the bundle is on trial. A task
        with `until` is made ready, and takes no steps but those of its legs."""

    def again(self, leg: Leg) -> None:
        """Takes the steps of a leg of the task in hand, which is `Ready`; `work` says that they are `Finished`. What
        was made ready stays so. Where `work` says `Ready` once more before that, the leg is lost, and due again."""

    def work(self, budget_s: float) -> tuple[News, ...]:
        """What happened since the last call; in this process, steps until `budget_s` is used up."""

    def wait_s(self) -> float:
        """In how many seconds `work` has something to do of its own; 0 while steps are taken in this process."""

    def keep(self, because: Because) -> None:
        """Writes a checkpoint of what was trained, if it is worth it."""

    def drop(self) -> None:
        """The task is over, and so is its checkpoint. Nothing is heard of it any more."""

    def pause(self) -> None:
        """Keeps what was trained and gives the memory back; `begin` goes on."""

    def unload(self) -> None:
        """Lets go of runtime and data, so that an idle agent is small again."""

    def close(self) -> None:
        """Keeps what was trained, and ends."""
