"""FLEET.toml: a fleet as people write it down, checked whole before anything starts, and read into a plan."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from devices.datasets import DATASETS
from devices.fleet.board import Availability, Board
from devices.fleet.catalogue import link_profile, load_board
from devices.fleet.plan import MAX_DEVICES, Device, EngineName, Fault, FaultKind, FleetPlan, Joined
from protocol.errors import ConfigurationError
from protocol.records import RecordError, read_record

# Where one device's name stands in a pattern of files.
DEVICE = "{device}"
_AUTO = "auto"
_ENGINES: Mapping[str, EngineName | None] = {
    "auto": None,
    "podman": "podman",
    "docker": "docker",
    "processes": "processes",
}
_JOINED = ("enrolment", "broker", "tokens")
# What can only befall a device with limits, a disk and a clock of its own.
_IN_CONTAINERS: Mapping[FaultKind, str] = {
    "throttle": "it has no share of the processor to take from",
    "disk-full": "it has no disk of its own",
    "clock-jump": "its clock is this machine's",
}
# What the emulation itself writes into the coordinator's settings.
_OURS: Mapping[str, str] = {
    "fleet": "set name at the top",
    "state": "its folder is the emulation's",
    "bundle": "it follows from data",
    "broker": "the emulation starts one; to join a running fleet give enrolment, broker and tokens",
    "trust": "its folder is the emulation's",
    "evaluation": "it follows from data",
}


@dataclass(frozen=True, slots=True)
class _Group:
    """One [[devices]]: `count` devices of a board, and what is different from it."""

    board: str
    count: int = 1
    name: str | None = None
    native: bool = True
    light: bool = False
    cores: float | None = None
    link: str | None = None
    availability: Availability | None = None
    step_ms: float | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    disk_write_mib_s: float | None = None
    clock_offset_s: float | None = None
    mtbf_s: float | None = None
    off_s: float | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_DEVICES:
            raise ValueError(f"count: {self.count} is outside 1..{MAX_DEVICES}; leave the group out for none")


@dataclass(frozen=True, slots=True)
class _FaultTable:
    """One [[faults]]. device: a name, or a pattern such as "pi-*"."""

    at_s: float
    device: str
    do: FaultKind
    for_s: float = 0.0
    factor: float = 1.0
    by_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Joined:
    enrolment: str
    broker: str
    tokens: str

    def __post_init__(self) -> None:
        host, _, port = self.enrolment.rpartition(":")
        if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
            raise ValueError(f"enrolment: {self.enrolment!r} must be HOST:PORT, as edge-agent enroll --url has it")
        if not self.broker.startswith(("mqtts://", "mqtt://")):
            raise ValueError(f"broker: {self.broker!r} must begin with mqtts:// or mqtt://")


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    data: str
    rounds: int
    devices: tuple[_Group, ...]
    seed: int = 1
    engine: str = _AUTO
    clock: float | str = _AUTO
    faults: tuple[_FaultTable, ...] = ()
    coordinator: Mapping[str, Any] = field(default_factory=dict)


def load_fleet(path: Path) -> FleetPlan:
    """The plan in a file. Files that it names are beside it. Raises ConfigurationError that names file and key."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read ({error.strerror}); name a fleet's file, such as examples/mixed-fleet.toml"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML ({error})") from None
    try:
        return _plan(read_record(_File, table), path.resolve().parent)
    except (RecordError, ValueError) as error:
        raise ConfigurationError(f"{path}: {error}") from None


def _plan(file: _File, folder: Path) -> FleetPlan:
    devices = tuple(device for place, group in enumerate(file.devices) for device in _devices(group, place, folder))
    joined, settings = _coordinator(file.coordinator, folder)
    return FleetPlan(
        name=file.name,
        devices=devices,
        data=_data(file.data, folder, joined),
        rounds=file.rounds,
        seed=file.seed,
        engine=_engine(file.engine),
        clock=_clock(file.clock),
        faults=tuple(_fault(table, place, devices, file.engine) for place, table in enumerate(file.faults)),
        coordinator=joined,
        settings=settings,
    )


def _devices(group: _Group, place: int, folder: Path) -> tuple[Device, ...]:
    """A group's devices: NAME, or NAME-1, NAME-2 and so on where there are several."""
    where = f"devices[{place}]"
    try:
        board = _changed(load_board(group.board, folder), group, folder)
        prefix = group.name or board.name
        digits = len(str(group.count))
        names = [prefix] if group.count == 1 else [f"{prefix}-{n:0{digits}d}" for n in range(1, group.count + 1)]
        return tuple(Device(name, board, group.native, group.light, group.cores) for name in names)
    except ValueError as error:
        raise RecordError(f"{where}.{error}") from None
    except ConfigurationError as error:
        raise RecordError(f"{where}: {error}") from None


def _changed(board: Board, group: _Group, folder: Path) -> Board:
    """The board with what the group says of its devices, which is then the source of it."""
    keys = (
        "availability",
        "step_ms",
        "memory_mib",
        "disk_mib",
        "disk_write_mib_s",
        "clock_offset_s",
        "mtbf_s",
        "off_s",
    )
    said: dict[str, Any] = {key: getattr(group, key) for key in keys if getattr(group, key) is not None}
    if group.link is not None:
        said["link"] = link_profile(group.link, folder)
    sources = {key: text for key, text in board.sources.items() if key.partition(".")[0] not in said}
    return replace(board, **said, sources=sources | dict.fromkeys(said, "the fleet's file"))


def _fault(table: _FaultTable, place: int, devices: tuple[Device, ...], engine: str) -> Fault:
    where = f"faults[{place}]"
    names = tuple(device.name for device in devices if fnmatchcase(device.name, table.device))
    if not names:
        some = ", ".join(device.name for device in devices[:8]) + (", ..." if len(devices) > 8 else "")
        raise RecordError(f"{where}.device: {table.device!r} is no device of this fleet, which has {some}")
    if table.do in _IN_CONTAINERS:
        light = {device.name for device in devices if device.light}
        plain = [name for name in names if name in light or engine == "processes"]
        if plain:
            raise RecordError(
                f"{where}.do: {table.do!r} cannot befall {plain[0]}, a plain process: {_IN_CONTAINERS[table.do]}; name "
                "devices in containers, or leave the fault out"
            )
    try:
        return Fault(table.at_s, table.do, names, table.for_s, table.factor, table.by_s)
    except ValueError as error:
        raise RecordError(f"{where}.{error}") from None


def _coordinator(table: Mapping[str, Any], folder: Path) -> tuple[Joined | None, dict[str, Mapping[str, object]]]:
    """[coordinator]: one that runs already, or tables laid over the settings of the one that is started."""
    if any(isinstance(table.get(key), str) for key in _JOINED):
        said = read_record(_Joined, table, where="coordinator")
        return Joined(said.enrolment, said.broker, folder / said.tokens), {}
    for key, value in table.items():
        if key in _OURS:
            raise RecordError(f"coordinator.{key}: not to be set here; {_OURS[key]}")
        if not isinstance(value, dict):
            raise RecordError(f"coordinator.{key}: {value!r} is no table of settings; write [coordinator.{key}]")
    if "count" in table.get("rounds", {}):
        raise RecordError("coordinator.rounds.count: not to be set here; set rounds at the top")
    return None, {key: dict(value) for key, value in table.items()}


def _data(data: str, folder: Path, joined: Joined | None) -> str:
    if DEVICE in data:
        if joined is None:
            raise RecordError(
                f"data: {data!r} is a pattern of files, for which no model is known; join a coordinator that has one "
                f"by [coordinator] enrolment, broker and tokens, or name a data set: {', '.join(DATASETS)}"
            )
        return str(folder / data)
    if data not in DATASETS:
        raise RecordError(
            f"data: {data!r} is unknown; known: {', '.join(DATASETS)}, or a pattern of files with {DEVICE}"
        )
    return data


def _engine(name: str) -> EngineName | None:
    if name not in _ENGINES:
        raise RecordError(f"engine: {name!r} is unknown; use {', '.join(_ENGINES)}")
    return _ENGINES[name]


def _clock(said: float | str) -> float | None:
    if isinstance(said, float):
        return said
    if said != _AUTO:
        raise RecordError(
            f'clock: {said!r} is no number; say how many real seconds an emulated second lasts, or "auto"'
        )
    return None
