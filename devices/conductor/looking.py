"""What a fleet is seen to do from another terminal: by its conductor, or, where that has died, by its engines."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from devices.conductor import folder
from devices.conductor.control import ask
from devices.conductor.engines import named_engine
from devices.engines.engine import Engine
from devices.fleet.plan import EngineName
from devices.text import MISSING, bytes_text, percent_text
from protocol.errors import ConfigurationError, SparsefleetError, UnreachableError

_ROW = "{:<24}{:<24}{:<10}{:>9}{:>10}{:>9}{:>11}{:>11}"


def engines_of(entry: folder.Entry) -> tuple[Engine, ...]:
    """The fleet's engine, and that of its light devices where it has some."""
    names: tuple[EngineName, ...] = (entry.engine,)
    if entry.light and entry.engine != "processes":
        names = (entry.engine, "processes")
    return tuple(named_engine(name) for name in names)


def engine_of(entry: folder.Entry, device: str) -> Engine:
    """The engine that has a device. Raises ConfigurationError that lists those there are."""
    known: list[str] = []
    for engine in engines_of(entry):
        found = engine.devices(entry.fleet)
        if device in found:
            return engine
        known += found
    raise ConfigurationError(
        f"device: {device!r} is not of fleet {entry.fleet!r}, which has {', '.join(known) or 'none'}"
    )


def look(entry: folder.Entry) -> dict[str, Any]:
    """The conductor's word; without one, what the engines say, and that nobody conducts it."""
    about = {"fleet": entry.fleet, "folder": entry.folder, "engine": entry.engine}
    if folder.conducted(entry.fleet):
        try:
            return {**about, "conducted": True, **ask(Path(entry.folder), {"do": "status"})}
        except UnreachableError:
            return {**about, "conducted": True, "running": False, "devices": []}
    rows = [row for engine in engines_of(entry) for row in _seen(engine, entry.fleet)]
    return {**about, "conducted": False, "running": False, "devices": rows}


def _seen(engine: Engine, fleet: str) -> Iterable[Mapping[str, Any]]:
    try:
        for device in engine.devices(fleet):
            now = engine.condition(fleet, device)
            yield {
                "device": device,
                "engine": engine.name,
                "state": now.state,
                "cpu_s": round(now.cpu_s, 1),
                "memory_mib": now.memory_mib,
            }
    except SparsefleetError as error:
        yield {"device": MISSING, "engine": engine.name, "state": str(error)}


def print_fleets(looks: Iterable[Mapping[str, Any]]) -> None:
    for said in looks:
        print(f"{said['fleet']}  {said['engine']}  {said['folder']}  {_progress(said)}")
        if said["devices"]:
            print(_ROW.format("device", "board", "presence", "cpu", "memory", "restarts", "up", "down"))
        for row in said["devices"]:
            print(_ROW.format(*_cells(row)))


def _progress(said: Mapping[str, Any]) -> str:
    if not said["conducted"]:
        return f"nobody conducts it; fleet-emulate down {said['fleet']} takes it away"
    if not said["running"]:
        return "starting"
    accuracy = percent_text(said.get("accuracy"))
    return f"round {said['round']} of {said['rounds']}, accuracy {accuracy}, {said['at_s']:.0f} s of the emulated clock"


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    memory = row.get("memory_mib")
    return (
        row["device"],
        row.get("board", MISSING),
        row.get("presence") or row["state"],
        f"{row.get('cpu_s', 0.0):.1f} s",
        MISSING if memory is None else f"{memory:.0f} MiB",
        str(row.get("restarts", MISSING)),
        bytes_text(row.get("bytes_up")),
        bytes_text(row.get("bytes_down")),
    )
