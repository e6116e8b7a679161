"""What the agent and its training process say to each other: CBOR, a message a packet, over one socket pair.

Vectors do not go this way: the result lies in a memory file that both hold. The process has read data and graphs that
came from elsewhere, so what it says is read as carefully as what comes from the network.
"""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

import cbor2
import numpy as np

from edge_agent.data import DataSettings
from edge_agent.personal.settings import OFF, PersonalSettings
from edge_agent.progress import Because
from edge_agent.runtimes.engine import Vector
from edge_agent.settings import TrainingSettings
from edge_agent.trainer import Broken, Proven, Ready, Refused, Unusable
from protocol.cbor import flaw
from protocol.messages import HeldOut, Task
from protocol.records import RecordError, read_record, write_record

# A task with its differences has a few KiB; what goes wrong is told in fewer.
MAX_BYTES = 1 << 16
# In the memory file.
VALUE = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class Start:
    """The agent's first word: where things are, how to train, and what the process may take. memory_mib: 0 is no
    limit."""

    state: str
    base: str
    disk_mib: int
    memory_mib: int
    training: TrainingSettings
    data: DataSettings
    personal: PersonalSettings = OFF


@dataclass(frozen=True, slots=True)
class Begin:
    """Train this task, with this backend, from its checkpoint if there is one. trial_steps: after which Proven is due,
    where the bundle is on trial."""

    task: Task
    backend: str
    why: str
    trial_steps: int = 0


@dataclass(frozen=True, slots=True)
class Leg:
    """Take these steps of the task that is ready; the memory file holds float32[values] of model to begin with, then
    float32[momentum]. steps: 0 has the model measured."""

    steps: int
    seed: int
    values: int
    momentum: int = 0


@dataclass(frozen=True, slots=True)
class Keep:
    """Write a checkpoint, if it is worth it."""

    because: Because


@dataclass(frozen=True, slots=True)
class Drop:
    """The task is over; answered by Dropped."""


@dataclass(frozen=True, slots=True)
class End:
    """Keep what was trained, and end."""


@dataclass(frozen=True, slots=True)
class Awake:
    """The process's first word: what is installed."""

    runtime: str
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stepped:
    """So many steps are done, in so many seconds of training. kept: whether a checkpoint was written since the last
    word."""

    done: int
    seconds: float
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Trained:
    """All steps are done; the memory file holds float32[values] of model, then float32[gradient] of mean gradient, then
    float32[momentum]."""

    values: int
    gradient: int
    loss: float
    steps: int
    seconds: float
    peak_mib: float | None = None
    momentum: int = 0
    held_out: HeldOut | None = None
    own: HeldOut | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """The task is let go of, and its checkpoint is gone. What came before was of it."""


Order = Start | Begin | Leg | Keep | Drop | End
Answer = Awake | Ready | Unusable | Refused | Broken | Stepped | Proven | Trained | Dropped

_KINDS: Mapping[str, type[Order | Answer]] = {
    kind.__name__: kind
    for kind in (
        *(Start, Begin, Leg, Keep, Drop, End),
        *(Awake, Ready, Unusable, Refused, Broken, Stepped, Proven, Trained, Dropped),
    )
}


class GarbledError(ValueError):
    """A packet is no message of ours."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a connection that keeps packets apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def pack_message(message: Order | Answer) -> bytes:
    """The packet of a message."""
    data = cbor2.dumps([type(message).__name__, write_record(message)])
    assert len(data) <= MAX_BYTES, f"{type(message).__name__} of {len(data)} bytes"
    return data


def read_message(data: bytes) -> Order | Answer:
    """The message of a packet. Raises GarbledError."""
    wrong = flaw(data)
    if wrong is not None:
        raise GarbledError(wrong)
    try:
        said = cbor2.loads(data)
    # Text that is not UTF-8: the name of cbor2's error for it depends on its version.
    except (cbor2.CBORDecodeError, ValueError) as error:
        raise GarbledError(str(error)) from None
    name, body = said if isinstance(said, list) and len(said) == 2 else (None, None)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise GarbledError("it is of no known kind")
    try:
        return read_record(kind, body)
    except RecordError as error:
        raise GarbledError(f"{name}: {error}") from None


def taken(memory: int, values: int) -> Vector | None:
    """float32[values] from a memory file, which is empty again then; None where it has another size."""
    if os.fstat(memory).st_size < values * VALUE.itemsize:
        return None
    found = np.empty(values, VALUE)
    part, start = found.view(np.uint8).data, 0
    while start < len(part):
        read = os.preadv(memory, [part[start:]], start)
        if not read:
            return None
        start += read
    os.ftruncate(memory, 0)
    return found.astype(np.float32, copy=False)
