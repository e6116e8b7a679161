"""A fleet from its file and options, with everything that can be refused before anything starts."""

import argparse
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from devices.conductor import folder, joining, room
from devices.conductor.engines import chosen_engine, named_engine
from devices.conductor.preparing import Fleet
from devices.conductor.telling import Telling
from devices.engines.engine import Engine
from devices.fleet.commands import this_machine
from devices.fleet.fleet_file import load_fleet
from devices.fleet.forecast import forecast
from devices.fleet.plan import FleetPlan
from protocol.errors import ConfigurationError

# No machine takes the reference step in less.
_FASTEST_MS = 0.1
# A month.
_MAX_S = 31 * 86_400.0


def checked_plan(options: argparse.Namespace) -> tuple[FleetPlan, Path]:
    """The plan with the options laid over it, and its folder. Raises ConfigurationError."""
    plan = load_fleet(options.file)
    if options.rounds is not None:
        try:
            plan = replace(plan, rounds=options.rounds)
        except ValueError as error:
            raise ConfigurationError(f"--{error}") from None
    if options.at_most is not None and not 0.0 < options.at_most < _MAX_S:
        raise ConfigurationError(f"--at-most: {options.at_most:g} is outside 0..{_MAX_S:g} seconds")
    return plan, (options.out or folder.default_folder(plan.name)).resolve()


def fleet_of(options: argparse.Namespace, console: Console) -> Fleet:
    """Raises ConfigurationError that names the thing, the value and the remedy."""
    plan, place = checked_plan(options)
    engine = chosen_engine(options.engine or plan.engine)
    light = engine if engine.name == "processes" else named_engine("processes")
    engines = {device.name: light if device.light else engine for device in plan.devices}
    if plan.coordinator is not None:
        joining.enrolment(plan.coordinator)
        joining.tokens(plan.coordinator, len(plan.devices))
    _check_names(plan, (engine, light))
    room.check_disk(plan, place)
    room.check_memory(plan)
    if engine.name != "processes":
        # What no machine could: how fast this one is shows later.
        forecast(plan, this_machine(_FASTEST_MS))
        room.check_containers(plan, place, engine.name)  # type: ignore[arg-type]
    telling = Telling(console, plan.rounds, options.json)
    return Fleet(plan, place, engine, engines, telling, keep=options.keep, at_most_s=options.at_most)


def check_name(plan: FleetPlan) -> None:
    """Raises ConfigurationError where a fleet of that name runs, or was left behind."""
    for entry in folder.entries():
        if entry.fleet == plan.name:
            state = "is running already" if folder.conducted(plan.name) else "was left"
            raise ConfigurationError(
                f"fleet {plan.name!r} {state} in {entry.folder}; fleet-emulate down {plan.name} ends it, "
                "or give this one another name"
            )


def _check_names(plan: FleetPlan, engines: tuple[Engine, ...]) -> None:
    check_name(plan)
    for engine in engines:
        if plan.name in engine.fleets():
            raise ConfigurationError(
                f"fleet {plan.name!r}: {engine.name} has devices of that name already; "
                f"fleet-emulate down {plan.name} takes them away, or give this one another name"
            )
