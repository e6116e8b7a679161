"""fleet-emulate boards and validate: what can be emulated, and what a fleet's file comes to before anything starts."""

import argparse
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from devices.engines.engine import Limits
from devices.fleet.board import Architecture, Board
from devices.fleet.catalogue import catalogue, load_board
from devices.fleet.clock import runs
from devices.fleet.fleet_file import load_fleet
from devices.fleet.forecast import Forecast, Machine, forecast
from devices.fleet.plan import Device, FleetPlan
from devices.fleet.reference import EMULATED_TIMES, REFERENCE_STEP_MS
from protocol.errors import ConfigurationError

_ARCHITECTURES: dict[str, Architecture] = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


def add_commands(commands: Any) -> None:
    """`commands`: what add_subparsers returned."""
    boards = commands.add_parser(
        "boards",
        help="list the boards that can be emulated, their figures and where those are from",
        epilog="example: fleet-emulate boards raspberry-pi-4",
    )
    boards.add_argument("board", nargs="?", metavar="NAME|FILE", help="one board with its sources")
    boards.add_argument("--json", action="store_true", help="print JSON instead of text")
    boards.set_defaults(command=_boards)
    validate = commands.add_parser(
        "validate",
        help="check a fleet's file, and say what it would start on this machine",
        epilog="example: fleet-emulate validate examples/mixed-fleet.toml\n\nQuotas and clock are a forecast: up "
        "measures the reference step first.\nexit codes: 0 possible, 3 not",
    )
    validate.add_argument("fleet", type=Path, metavar="FLEET.toml")
    validate.add_argument(
        "--step-ms",
        type=float,
        metavar="MS",
        help=f"of the reference step on a core of this machine (default: {REFERENCE_STEP_MS:g})",
    )
    validate.add_argument("--json", action="store_true", help="print JSON instead of text")
    validate.set_defaults(command=_validate)


def _boards(options: argparse.Namespace) -> int:
    found = catalogue() if options.board is None else (load_board(options.board),)
    if options.json:
        print(json.dumps([asdict(board) for board in found] if options.board is None else asdict(found[0])))
    elif options.board is None:
        rows = [("board", "step ms", "cores", "MiB", "W rest", "W busy", "processor"), *map(_row, found)]
        _print_columns(rows)
        print("\nstep ms: of the reference training step on one core; for all of these it is derived, not measured.")
    else:
        _print_board(found[0])
    return 0


def _row(board: Board) -> tuple[str, ...]:
    power = board.power
    figures = (
        f"{board.step_ms:.1f}",
        str(board.cores),
        str(board.memory_mib),
        f"{power.idle_w:g}",
        f"{power.busy_w:g}",
    )
    return (board.name, *figures, board.cpu)


def _print_board(board: Board) -> None:
    print(f"{board.name}: {board.title}")
    figures = {key: value for key, value in asdict(board).items() if key not in ("name", "title", "sources")}
    for key, value in figures.items():
        print(f"  {key:17} {', '.join(_said(value)) if isinstance(value, dict) else value}")
        if key in board.sources:
            print(f"  {'':17} from: {board.sources[key]}")
    if "benchmark_ms" in board.sources:
        print(f"  {'benchmark_ms':17} from: {board.sources['benchmark_ms']}")


def _said(table: dict[str, Any]) -> Iterator[str]:
    """What a table says that is not nothing, without the tables' own names."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _said(value)
        elif value and key != "source":
            yield f"{key} {value}"


def this_machine(step_ms: float | None = None) -> Machine:
    """The machine at hand, with a guess at the reference step. Raises ConfigurationError for one of another kind."""
    named = platform.machine()
    if named not in _ARCHITECTURES:
        raise ConfigurationError(f"machine: {named} is none that devices can run on; use one of x86_64 and aarch64")
    host, native_ms = _ARCHITECTURES[named], REFERENCE_STEP_MS if step_ms is None else step_ms
    full_speed: dict[Architecture, float] = dict.fromkeys(("amd64", "arm64"), native_ms * EMULATED_TIMES)
    full_speed[host] = native_ms
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return Machine(host, len(os.sched_getaffinity(0)), memory, full_speed)


def _validate(options: argparse.Namespace) -> int:
    if options.step_ms is not None and not 0.001 <= options.step_ms <= 1e6:
        raise ConfigurationError(f"--step-ms: {options.step_ms} is outside 0.001..1000000")
    plan, machine = load_fleet(options.fleet), this_machine(options.step_ms)
    found = forecast(plan, machine)
    if options.json:
        print(json.dumps(_facts(plan, machine, found)))
        return 0
    print(f"{plan.name}: {len(plan.devices)} devices, {plan.rounds} rounds of {plan.data}, {len(plan.faults)} faults")
    _print_columns([("devices", "board", "runs", "cores", "MiB", "disk MiB"), *_grouped(plan.devices, machine, found)])
    print(f"clock: one emulated second lasts {found.clock.real_s:g} s here ({found.least.because})")
    for note in found.notes:
        print(f"- {note}")
    return 0


def _facts(plan: FleetPlan, machine: Machine, found: Forecast) -> dict[str, object]:
    devices = [
        {
            "device": device.name,
            "board": device.board.name,
            "runs": runs(device, machine.architecture),
            "light": device.light,
            "calibrated": device.calibrated,
            "step_ms": device.board.step_ms,
            "limits": asdict(found.limits[device.name]),
        }
        for device in plan.devices
    ]
    return {
        "fleet": plan.name,
        "data": plan.data,
        "rounds": plan.rounds,
        "seed": plan.seed,
        "clock": found.clock.real_s,
        "because": found.least.because,
        "cores": machine.cores,
        "devices": devices,
        "faults": [asdict(fault) for fault in plan.faults],
        "notes": list(found.notes),
    }


def _grouped(devices: Sequence[Device], machine: Machine, found: Forecast) -> list[tuple[str, ...]]:
    """One line for neighbours that are alike."""
    groups: list[tuple[Board, tuple[str, ...], list[str]]] = []
    for device in devices:
        said = (device.board.name, _kind(device, machine), *_columns(found.limits[device.name]))
        # The board is a whole one, with link and availability.
        if groups and groups[-1][:2] == (device.board, said):
            groups[-1][2].append(device.name)
        else:
            groups.append((device.board, said, [device.name]))
    return [(f"{names[0]} to {names[-1]}" if len(names) > 1 else names[0], *said) for _, said, names in groups]


def _kind(device: Device, machine: Machine) -> str:
    return "light" if device.light else runs(device, machine.architecture)


def _columns(limits: Limits) -> tuple[str, str, str]:
    cores = "-" if limits.cores is None else f"{limits.cores:.3f}"
    memory, disk = (("-" if mib is None else str(mib)) for mib in (limits.memory_mib, limits.disk_mib))
    return cores, memory, disk


def _print_columns(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
