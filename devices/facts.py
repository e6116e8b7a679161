"""What the coordinator tells: its event stream and its tables of rounds and devices, read from JSON into records."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from protocol.errors import SparsefleetError
from protocol.records import RecordError, read_record

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Listening:
    """The broker is up and devices may join. enrolment: the port where they get their identity, if they need one."""

    broker: str
    url: str = ""
    run: str | None = None
    enrolment: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceJoined:
    """A device has said what it holds and what it trains with."""

    device: str
    examples: int | None = None
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class RoundOpened:
    """A round's tasks are out."""

    round: int
    devices: int


@dataclass(frozen=True, slots=True)
class RoundCommitted:
    """One committed round. Bytes are the sum over devices, `seconds` the whole round, overhead what was not compute."""

    round: int
    devices: int
    seconds: float
    bytes_up: int
    bytes_down: int
    version: int | None = None
    accuracy: float | None = None
    loss: float | None = None
    overhead_s: float | None = None


@dataclass(frozen=True, slots=True)
class UpdateRejected:
    """Something a device sent was refused and counted."""

    device: str
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Finished:
    """The run is over, because the target was reached or the rounds are used up."""

    reason: str
    version: int | None = None


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the coordinator keeps of one device. Bytes are totals of the run."""

    device: str
    examples: int | None = None
    backend: str | None = None
    rounds: int = 0
    accepted: int = 0
    rejected: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    last_loss: float | None = None
    step_ms: float | None = None
    last_seen_s: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How a model file does on held-out examples."""

    examples: int
    accuracy: float


@dataclass(frozen=True, slots=True)
class _Evaluated:
    examples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Tokens:
    tokens: tuple[str, ...]


Event = Listening | DeviceJoined | RoundOpened | RoundCommitted | UpdateRejected | Finished

_EVENTS: Mapping[str, type[Event]] = {
    "listening": Listening,
    "device": DeviceJoined,
    "round-opened": RoundOpened,
    "round-committed": RoundCommitted,
    "rejected": UpdateRejected,
    "finished": Finished,
}


def parse_event(line: bytes) -> Event | None:
    """The event of one line of `fleet-coordinator run --json`, or None for one this version does not show.

    Raises SparsefleetError for a line that is not an event at all.
    """
    said = _object(line, "event line")
    kind = said.pop("event", None)
    cls = _EVENTS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        if isinstance(kind, str):
            return None
        raise SparsefleetError(f"coordinator: {_short(line)} has no event name; coordinator and demo differ in version")
    return _read(cls, said, f"event {kind}")


def parse_devices(text: bytes) -> tuple[DeviceFacts, ...]:
    """The devices of `fleet-coordinator devices --json`."""
    return _table(DeviceFacts, text, "devices")


def parse_tokens(text: bytes) -> tuple[str, ...]:
    """The tokens of `fleet-coordinator token --json`."""
    return _read(_Tokens, _object(text, "tokens"), "tokens").tokens


def parse_evaluation(text: bytes) -> Evaluation:
    """The result of `fleet-coordinator evaluate-model --json`."""
    said = _read(_Evaluated, _object(text, "evaluation"), "evaluation")
    if "accuracy" not in said.metrics:
        raise SparsefleetError(
            "coordinator: the evaluation has no accuracy; name the metric in the example's TrainingSpec"
        )
    return Evaluation(said.examples, said.metrics["accuracy"])


def _table(cls: type[T], text: bytes, key: str) -> tuple[T, ...]:
    rows = _object(text, key).get(key)
    if not isinstance(rows, list):
        raise SparsefleetError(
            f"coordinator: {_short(text)} has no list {key!r}; coordinator and demo differ in version"
        )
    return tuple(_read(cls, row, f"{key}[{i}]") for i, row in enumerate(rows))


def _read(cls: type[T], said: object, where: str) -> T:
    try:
        # A newer coordinator may say more.
        return read_record(cls, said, where=where, ignore_unknown=True)
    except RecordError as error:
        raise SparsefleetError(f"coordinator: {error}; coordinator and demo differ in version") from None


def _object(text: bytes, what: str) -> dict[str, object]:
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise SparsefleetError(f"coordinator: the {what} {_short(text)} is not a JSON object")
    return said


def _short(text: bytes) -> str:
    return repr(text[:80].decode(errors="replace"))
