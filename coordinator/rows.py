"""The store's rows: what they say, as values, and how they are written inside somebody's transaction."""

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from coordinator.round import Phase
from coordinator.schema import DATABASE, LOST
from protocol.database import damaged
from protocol.messages import BlobRef, Envelope, Offer, Receipt, Task, decode, encode

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of the model: where it is, the server state and structure beside it, and how it did on held-out data.

    structure: the digest of what of it devices work on; None where they all work on the whole. public: the model that
    devices hold, None where it is this one. difference: what leads to that from the one they held before, if anything.
    """

    version: int
    blob: BlobRef
    server_state: bytes
    loss: float | None
    metrics: Mapping[str, float]
    structure: bytes | None = None
    public: BlobRef | None = None
    difference: BlobRef | None = None

    @property
    def published(self) -> BlobRef:
        """The whole model that devices fetch."""
        return self.public or self.blob


@dataclass(frozen=True, slots=True)
class StoredTask:
    """A device's place in a round, as of the last transaction."""

    device: str
    phase: Phase
    task: Task


@dataclass(frozen=True, slots=True)
class OpenedRound:
    """The round that was open when the store was last written."""

    number: int
    extensions: int
    bytes_before: tuple[int, int]
    tasks: tuple[StoredTask, ...]


@dataclass(frozen=True, slots=True)
class AcceptedUpdate:
    """An update in a round's set, and the task that it is for."""

    device: str
    digest: bytes
    weight: int
    train_s: float
    codec: str
    variant: str
    task: Task


@dataclass(frozen=True, slots=True)
class Pace:
    """How a device's last update was trained and packed."""

    variant: str
    steps: int
    train_s: float
    codec: str


@dataclass(frozen=True, slots=True)
class DeviceActivity:
    """What is written of a device now and then; nothing that was promised to it depends on it."""

    device: str
    agent: str
    backend: str
    present: bool
    examples: int | None
    last_seen_s: float
    resting_day: int | None = None


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """What a round came to. Seconds count from its opening, or from the last restart in it; bytes are those between its
    opening and its commit."""

    devices: int
    accuracy: float | None
    seconds: float
    overhead_s: float
    evaluation_s: float
    fold_s: float
    bytes_up: int
    bytes_down: int


def insert_model(sql: sqlite3.Connection, model: ModelVersion) -> None:
    sql.execute(
        "INSERT INTO models (version, digest, size, server_state, loss, metrics, structure, public, difference, "
        "difference_size) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            model.version,
            model.blob.digest,
            model.blob.size,
            model.server_state,
            model.loss,
            json.dumps(dict(model.metrics)),
            model.structure,
            None if model.public is None else model.public.digest,
            None if model.difference is None else model.difference.digest,
            None if model.difference is None else model.difference.size,
        ),
    )


def insert_task(sql: sqlite3.Connection, number: int, device: str, task: Task) -> None:
    sql.execute(
        "INSERT OR REPLACE INTO tasks (round, device, phase, task) VALUES (?, ?, 'invited', ?)",
        (number, device, encode(Envelope(0, 0, 0, task))),
    )


def replace_task(sql: sqlite3.Connection, number: int, device: str, task: Task) -> None:
    sql.execute(
        "UPDATE tasks SET task = ? WHERE round = ? AND device = ?", (encode(Envelope(0, 0, 0, task)), number, device)
    )


def unpack_task(data: bytes) -> Task:
    """Raises DamagedError: it was a task when it was written."""
    return unpack(Task, data)


def unpack(kind: type[T], data: bytes) -> T:
    """What a row holds as a message. Raises DamagedError where it is none of this kind any more."""
    stored = decode(data)
    if not isinstance(stored, Envelope) or not isinstance(stored.body, kind):
        raise damaged(Path(DATABASE), f"a stored {kind.__name__.lower()} cannot be read", LOST)
    return stored.body


def set_phase(
    sql: sqlite3.Connection, number: int, device: str, phase: Phase, reason: str = "", detail: str = ""
) -> None:
    sql.execute(
        "UPDATE tasks SET phase = ?, reason = ?, detail = ? WHERE round = ? AND device = ?",
        (phase, reason, detail, number, device),
    )


def insert_receipt(
    sql: sqlite3.Connection, device: str, offer: Offer, receipt: Receipt, number: int | None = None
) -> None:
    sql.execute(
        "INSERT INTO receipts VALUES (?, ?, ?, ?, ?, ?)",
        (
            device,
            offer.update_boot,
            offer.update_sequence,
            offer.blob.digest,
            offer.round if number is None else number,
            encode(Envelope(0, 0, 0, receipt)),
        ),
    )


def count_rejection(
    sql: sqlite3.Connection, device: str, number: int, reason: str, detail: str, count: int = 1
) -> None:
    sql.execute(
        "INSERT INTO rejections VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT DO UPDATE SET count = count + excluded.count, detail = excluded.detail",
        (number, device, reason, count, detail),
    )
