"""What the coordinator's store says of a run's devices and updates, as the record needs it."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import TypeVar

from protocol.errors import SparsefleetError
from protocol.records import RecordError, read_record

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DeviceAnswer:
    """One row of `fleet-coordinator devices --json`."""

    device: str
    variant: str | None = None
    accepted: int = 0
    rejected: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    step_ms: float | None = None
    discarded: int = 0


@dataclass(frozen=True, slots=True)
class UpdateAnswer:
    """One device's update in `fleet-coordinator round N --json`; fold: the version that took it."""

    device: str
    fold: int | None = None


@dataclass(frozen=True, slots=True)
class LateAnswer:
    """An update of an earlier round in a fold, so many versions behind."""

    device: str
    behind: int


@dataclass(frozen=True, slots=True)
class RoundAnswer:
    """What of `fleet-coordinator round N --json` says whose updates are in its version."""

    round: int
    devices: tuple[UpdateAnswer, ...] = ()
    late: tuple[LateAnswer, ...] = ()

    def folded(self) -> tuple[str, ...]:
        """The devices of its fold, also those that were late for an earlier one."""
        in_time = {update.device for update in self.devices if update.fold == self.round}
        return tuple(sorted(in_time | {late.device for late in self.late}))


@dataclass(frozen=True, slots=True)
class Answers:
    """All of it: devices by name, and rounds by number."""

    devices: dict[str, DeviceAnswer] = field(default_factory=dict)
    rounds: dict[int, RoundAnswer] = field(default_factory=dict)

    def staleness(self, device: str) -> float | None:
        """Mean versions behind of its folded updates; None where there was none."""
        behind = [0.0 for answer in self.rounds.values() for one in answer.devices if _in_time(answer, one, device)]
        behind += [float(one.behind) for answer in self.rounds.values() for one in answer.late if one.device == device]
        return fmean(behind) if behind else None


def parse_device_answers(text: bytes) -> dict[str, DeviceAnswer]:
    """Raises SparsefleetError."""
    rows = _table(text).get("devices")
    if not isinstance(rows, list):
        raise SparsefleetError("coordinator: its list of devices is none; coordinator and emulation differ in version")
    return {row.device: row for row in (_read(DeviceAnswer, one) for one in rows)}


def parse_round_answer(text: bytes) -> RoundAnswer:
    """Raises SparsefleetError."""
    return _read(RoundAnswer, _table(text))


def by_number(rounds: Iterable[RoundAnswer]) -> dict[int, RoundAnswer]:
    return {answer.round: answer for answer in rounds}


def _in_time(answer: RoundAnswer, update: UpdateAnswer, device: str) -> bool:
    return update.device == device and update.fold == answer.round


def _table(text: bytes) -> dict[str, object]:
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise SparsefleetError(f"coordinator: {text[:80]!r} is not a JSON object")
    return said


def _read(cls: type[T], said: object) -> T:
    try:
        return read_record(cls, said, ignore_unknown=True)
    except RecordError as error:
        raise SparsefleetError(f"coordinator: {error}; coordinator and emulation differ in version") from None
