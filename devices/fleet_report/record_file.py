"""record.json: the record of an emulated fleet's run as a file, versioned, and never half written."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from devices.fleet.record import FleetRecord
from protocol import records
from protocol.errors import ConfigurationError, SparsefleetError
from protocol.records import RecordError

VERSION = 1
NAME = "record.json"
# A thousand devices with a thousand samples of memory each are half of it.
MAX_BYTES = 1 << 26


def read_record(path: Path) -> FleetRecord:
    """The record in a file, or in the folder of a run. Raises ConfigurationError that names file, key and remedy."""
    if path.is_dir():
        path = path / NAME
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(
            f"{path}: cannot be read ({error.strerror}); name the folder that fleet-emulate up filled, or its {NAME}"
        ) from None
    if len(data) > MAX_BYTES:
        raise ConfigurationError(f"{path}: more than {MAX_BYTES} bytes; it is no record of a fleet")
    return parse_record(str(path), data)


def parse_record(name: str, data: bytes) -> FleetRecord:
    """The record in these bytes; `name` is for messages. Raises ConfigurationError."""
    try:
        said = json.loads(data)
        if not isinstance(said, dict):
            raise RecordError(f"a {type(said).__name__} where a table of keys should be")
        version = said.pop("version", None)
        if version != VERSION:
            raise RecordError(f"version: {version!r} is not the one that this release reads ({VERSION})")
        return records.read_record(FleetRecord, _with_nan(FleetRecord, said))
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{name}: not the record of a fleet ({error}); fleet-emulate up of this release writes one"
        ) from None


def write_record(path: Path, record: FleetRecord) -> None:
    """Writes the file whole or not at all; NaN and infinities become null. Raises SparsefleetError."""
    said = {"version": VERSION, **records.write_record(record)}
    text = "{\n" + ",\n".join(f"{_json(key)}: {_lines(value)}" for key, value in said.items()) + "\n}\n"
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise SparsefleetError(f"{path}: cannot be written ({error.strerror}); check the folder and its disk") from None


def _lines(value: object) -> str:
    """A line for each device, round and happening: for whoever has a pager, or compares two runs."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(map(_json, value)) + "\n]"
    return _json(value)


def _json(value: object) -> str:
    return json.dumps(_without_nan(value), allow_nan=False)


def _without_nan(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(inner) for key, inner in value.items()}
    return [_without_nan(inner) for inner in value] if isinstance(value, list) else value


def _with_nan(want: Any, value: object) -> object:
    """The same with NaN for each null where the type wants a number: a figure that nobody knows spoils no record."""
    if want is float:
        return math.nan if value is None else value
    if isinstance(want, type) and dataclasses.is_dataclass(want) and isinstance(value, Mapping):
        hints = _hints(want)
        return {key: _with_nan(hints.get(key), inner) for key, inner in value.items()}
    if get_origin(want) is tuple and isinstance(value, list):
        return [_with_nan(get_args(want)[0], inner) for inner in value]
    options = [option for option in get_args(want) if option is not NoneType]
    if value is not None and len(options) == 1 and dataclasses.is_dataclass(options[0]):
        return _with_nan(options[0], value)
    return value


@cache
def _hints(cls: type) -> Mapping[str, Any]:
    return get_type_hints(cls)
