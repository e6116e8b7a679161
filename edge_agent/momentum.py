"""Momentum that goes on from round to round on a device: quasi-global, or the velocity of local SGD.

Quasi-global momentum (Lin, Karimireddy, Stich, Jaggi, "Quasi-Global Momentum", ICML 2021, algorithm 1) with a hub:

    m = beta mh + g,   y = x - eta m   (Nesterov: y = x - eta (g + beta m)),   x' = the fleet's next model
    mh <- mu mh + (1 - mu) (x - x') / eta

What the fleet did is seen in two models that the device has anyway, so that it costs no traffic. Where we depart:

- A round has several local steps, where the paper gossips after each. mh stays what it is during them, and the movement
  is divided by the sum of their learning rates, as the authors' code, where it refreshes mh every tau steps, takes the
  mean of tau movements. Each device divides by its own sum: with other counts of steps elsewhere beta mh, times its own
  steps, is still beta times what the fleet moved.
- A device that missed rounds sees what several of them did, x - x' from version v to v + k, as k equal movements:
  mh <- mu^k mh + (1 - mu^k) (x - x') / (k eta). So it is with a rejected update: x stays the model of the last accepted
  one. After more missed rounds than residuals are kept for, in another run, and in another layout (other channels of a
  tier), mh begins at zero.
- Under a mask mh is zero where either round's mask leaves out: a weight that comes back moves by no step of the fleet.

The velocity of local SGD is taken as it was after the last step of the last accepted update, under the same limits.
Both are of parameters alone: buffers travel whole and have no momentum.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edge_agent.runtimes import safetensors
from edge_agent.runtimes.engine import Array, Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from protocol.database import SEAL_BYTES, sealed, unsealed
from protocol.disk import Disk, exists, write_durably
from protocol.errors import BundleError, ConfigurationError
from protocol.messages import OptimizerSpec, Task
from protocol.records import RecordError, read_record, write_record
from sparse.masks import Mask, pack_mask, unpack_mask

log = logging.getLogger("edge-agent")

# What the task in hand begins with, in the state folder; of one task at a time.
FILE = "momentum"


@dataclass(frozen=True, slots=True)
class Memory:
    """What a device keeps of an accepted update's round.

    version: of the model that it was trained from. rate: the sum of its steps' learning rates. vector: float32[n], mh,
    or the velocity. base: float32[n], x, or float32[0] of a velocity. mask: bool[n] of the round, None without.
    """

    kind: Literal["qg", "sgd"]
    run: str
    round: int
    version: int
    rate: float
    vector: Vector
    base: Vector
    mask: Mask | None = None


def settings_of(spec: OptimizerSpec) -> OptimizerSettings:
    """Raises ValueError by the name of what is unknown or out of range."""
    return OptimizerSettings(**write_record(spec))


def memory_of(
    task: Task, settings: OptimizerSettings, steps: int, vector: Vector, base: Vector, mask: Mask | None
) -> Memory:
    """What is kept once, and only if, the task's update is accepted. vector, base: float32[n], of what was trained."""
    kind: Literal["qg", "sgd"] = "qg" if settings.name == "qg" else "sgd"
    x = base if kind == "qg" else np.zeros(0, np.float32)
    return Memory(kind, task.run, task.round, task.version, task.learning_rate * steps, vector, x, mask)


def carried(
    memory: Memory | None, task: Task, settings: OptimizerSettings, base: Vector, mask: Mask | None, most_missed: int
) -> Vector:
    """float32[n] that a task's optimiser begins with. base: float32[n], x', the model that the task starts from."""
    n = len(base)
    if memory is None or not _lasts(memory, task, settings, n, most_missed):
        return np.zeros(n, np.float32)
    vector = memory.vector
    if memory.kind == "qg":
        vector = quasi_global(memory, settings.mu, base, task.version - memory.version)
    for one in (memory.mask, mask):
        if one is not None:
            vector = np.where(one, vector, np.float32(0.0))
    if not np.isfinite(vector).all():
        # Not settled away by any update: every task that began with it would fail.
        log.error("task=%s momentum begins at zero: it is no longer one of finite numbers", task.name)
        return np.zeros(n, np.float32)
    return vector.astype(np.float32)


def quasi_global(memory: Memory, mu: float, model: Vector, rounds: int) -> Vector:
    """mh, float32[n], once the fleet has moved on from memory.base to `model` in so many rounds."""
    if rounds < 1:
        # Of the same version: the fleet has not moved yet.
        return memory.vector
    kept = mu**rounds
    moved = np.subtract(memory.base, model, dtype=np.float32)
    # What becomes of rates that are too small, `carried` looks at.
    with np.errstate(over="ignore", invalid="ignore"):
        moved *= np.float32((1.0 - kept) / (memory.rate * rounds))
        return np.float32(kept) * memory.vector + moved


def _lasts(memory: Memory, task: Task, settings: OptimizerSettings, n: int, most_missed: int) -> bool:
    same = memory.kind == ("qg" if settings.name == "qg" else "sgd") and memory.run == task.run
    missed = task.round - memory.round - 1
    if same and len(memory.vector) == n and missed <= most_missed:
        return True
    log.info("task=%s momentum begins at zero: missed=%d, of run=%s", task.name, missed, memory.run)
    return False


# As bytes


@dataclass(frozen=True, slots=True)
class _Place:
    kind: Literal["qg", "sgd"]
    run: str
    round: int
    version: int
    rate: float


def pack_memory(memory: Memory) -> bytes:
    """The bytes of a memory, the last four of them a CRC-32."""
    place = write_record(_Place(memory.kind, memory.run, memory.round, memory.version, memory.rate))
    arrays: dict[str, Array] = {"vector": memory.vector.astype("<f4", copy=False)}
    if len(memory.base):
        arrays["base"] = memory.base.astype("<f4", copy=False)
    if memory.mask is not None:
        arrays["mask"] = np.frombuffer(pack_mask(memory.mask), np.uint8)
    return sealed(safetensors.format_tensors(arrays, {"place": json.dumps(place)}))


def unpack_memory(data: bytes) -> Memory | None:
    """The memory in these bytes; None where they were altered."""
    said = unsealed(data) if len(data) > SEAL_BYTES else None
    if said is None:
        return None
    try:
        file = safetensors.parse(FILE, said)
        place = read_record(_Place, json.loads(str(file.text.get("place", ""))))
        vector = file.array("vector")
        base = file.array("base") if "base" in file.header else np.zeros(0, np.float32)
        mask = unpack_mask(file.array("mask", ("U8",)).tobytes(), len(vector)) if "mask" in file.header else None
    except (BundleError, RecordError, ValueError):
        return None
    return Memory(place.kind, place.run, place.round, place.version, place.rate, vector, base, mask)


# What the task in hand begins with


def lay_out(state: Path, task: Task, n: int, make: Callable[[], Vector], disk: Disk) -> None:
    """Writes what a task's optimiser begins with, float32[n], once: whatever is settled while it is in hand, and
    however often it is begun anew, it begins with the same; unless this device was told meanwhile to train another
    variant, which has other parameters."""
    path = state / FILE
    if not settings_of(task.optimizer).carries:
        if exists(disk, path):
            disk.remove(path)
        return
    there = _laid_out(path, task, disk)
    if there is None or len(there) != n:
        data = safetensors.format_tensors({"momentum": make().astype("<f4", copy=False)}, {"task": task.name})
        write_durably(path, sealed(data), disk)


def laid_out(state: Path, task: Task, disk: Disk) -> Vector | None:
    """float32[n] that a task's optimiser begins with, None of one that carries nothing. Raises ConfigurationError where
    it is gone."""
    if not settings_of(task.optimizer).carries:
        return None
    found = _laid_out(state / FILE, task, disk)
    if found is None:
        raise ConfigurationError(f"{state / FILE}: gone or altered since the task was begun; check the disk")
    return found


def _laid_out(path: Path, task: Task, disk: Disk) -> Vector | None:
    data = unsealed(disk.read(path)) if exists(disk, path) else None
    try:
        file = None if data is None else safetensors.parse(str(path), data)
        return file.array("momentum") if file is not None and file.text.get("task") == task.name else None
    except BundleError:
        return None
