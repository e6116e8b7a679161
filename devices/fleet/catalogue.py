"""The catalogue of boards: one TOML file each, every figure with its source, and files of a user's own in its form."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from devices.fleet.board import Architecture, Availability, Board, Power, check_range
from devices.fleet.reference import step_from_benchmark, step_from_profile
from devices.links import PROFILES, Link, named_profile
from devices.links import Profile as LinkProfile
from protocol.errors import ConfigurationError
from protocol.profile import load_profile
from protocol.records import RecordError, nearest, read_record

_FOLDER = files("devices.fleet.boards")
# Words and identity, no figures.
_NO_FIGURES = frozenset({"name", "title", "architecture", "calibration", "sources"})


@dataclass(frozen=True, slots=True)
class _BoardFile:
    """A board's file. Exactly one of three says the reference step: `step_ms`, as measured on the board;
    `calibration`, a file that edge-agent calibrate made on it; or `benchmark_ms`, from which it is derived."""

    name: str
    title: str
    architecture: Architecture
    cpu: str
    cores: int
    memory_mib: int
    disk_mib: int
    disk_write_mib_s: float
    power: Power
    link: Link | str
    step_ms: float | None = None
    calibration: str | None = None
    benchmark_ms: float | None = None
    availability: Availability = field(default_factory=Availability)
    clock_offset_s: float = 0.0
    mtbf_s: float = 0.0
    off_s: float = 30.0
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if sum(said is not None for said in (self.step_ms, self.calibration, self.benchmark_ms)) != 1:
            raise ValueError("step_ms: say exactly one of step_ms, calibration (a file) and benchmark_ms")
        if self.benchmark_ms is not None:
            check_range("benchmark_ms", self.benchmark_ms, 0.01, 1e6, "milliseconds of SqueezeNet in ncnn on one core")


def catalogue() -> tuple[Board, ...]:
    """All boards, in the order of their names."""
    return tuple(load_board(name) for name in catalogue_names())


def catalogue_names() -> tuple[str, ...]:
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in _FOLDER.iterdir() if entry.name.endswith(".toml"))
    )


def load_board(name: str, folder: Path = Path()) -> Board:
    """A board of the catalogue, or one in a TOML file; files are looked for in `folder`.

    Raises ConfigurationError that names the file, the key, the value and the remedy.
    """
    if not name.endswith(".toml"):
        if name not in catalogue_names():
            raise ConfigurationError(
                f"board: {name!r} is unknown; {nearest(name, catalogue_names())}; fleet-emulate boards lists them, and "
                "a file of your own ends in .toml"
            )
        return _board(f"board {name}", (_FOLDER / f"{name}.toml").read_text(encoding="utf-8"), folder)
    path = folder / name
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"board: {path}: cannot be read ({error.strerror}); name a file of a board") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"board: {path}: not UTF-8 ({error})") from None
    return _board(str(path), text, path.parent)


def link_profile(name: str, folder: Path = Path()) -> LinkProfile:
    """A built-in profile of a link, or one in a file in `folder`. Raises ConfigurationError."""
    return named_profile(name if name in PROFILES else str(folder / name))


def _board(where: str, text: str, folder: Path) -> Board:
    try:
        table = tomllib.loads(text)
        file = read_record(_BoardFile, table)
        _check_sources(table, file.sources)
        return _resolved(file, folder)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{where}: not valid TOML ({error})") from None
    except (RecordError, ValueError) as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _resolved(file: _BoardFile, folder: Path) -> Board:
    """The board with its link looked up and its step worked out."""
    step_ms, sources = file.step_ms, dict(file.sources)
    if file.benchmark_ms is not None:
        step_ms, sources["step_ms"] = step_from_benchmark(file.benchmark_ms)
    elif file.calibration is not None:
        step_ms, sources["step_ms"] = step_from_profile(load_profile(folder / file.calibration))
    assert step_ms is not None
    values: dict[str, Any] = {
        key: getattr(file, key) for key in asdict(file) if key not in ("calibration", "benchmark_ms")
    }
    values["link"] = link_profile(file.link, folder) if isinstance(file.link, str) else LinkProfile(file.link)
    return Board(**values | {"step_ms": step_ms, "sources": sources})


def _check_sources(table: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    """Every figure has a source under its own key or the table's that it is in. Raises RecordError."""
    for key in _figures(table):
        parts = key.split(".")
        if not any(sources.get(".".join(parts[:depth]), "").strip() for depth in range(len(parts), 0, -1)):
            raise RecordError(
                f'sources.{key}: missing; say in [sources] where the figure is from, as {parts[0]} = "a data sheet, '
                'or how it was measured"'
            )
    unused = [
        key for key in sources if not any(figure == key or figure.startswith(f"{key}.") for figure in _figures(table))
    ]
    if unused:
        raise RecordError(
            f"sources.{unused[0]}: there is no such figure in this file; {nearest(unused[0], _figures(table))}"
        )


def _figures(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if not prefix and key in _NO_FIGURES:
            continue
        if isinstance(value, dict):
            yield from _figures(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
