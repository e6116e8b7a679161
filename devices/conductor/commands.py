"""The commands that raise an emulated fleet, look into it, disturb it, and take it away."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.fleet.plan import EngineName
from protocol.command import INTERRUPTED, Parser
from protocol.errors import ConfigurationError, NothingToDoError, SparsefleetError, UnreachableError

if TYPE_CHECKING:
    from devices.conductor.preparing import Fleet

UP_EPILOG = """\
examples:
  fleet-emulate up examples/mixed-fleet.toml
  fleet-emulate up examples/mixed-fleet.toml --engine processes --rounds 2 --json
  fleet-emulate up examples/mixed-fleet.toml --detach            # then fleet-emulate ps

--json prints an event a line: stage, device-started, happening, round-committed; the last one is the result, ended.
exit codes: 0 all rounds done, 1 failed or out of time, 3 configuration (what was started is gone), 130 interrupted or
taken down
"""
_ENGINES: tuple[EngineName, ...] = ("podman", "docker", "processes")


def add_commands(commands: "argparse._SubParsersAction[Parser]") -> None:
    up = commands.add_parser(
        "up",
        help="raise a fleet of emulated devices from a file, train, and report",
        epilog=UP_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    up.add_argument("file", type=Path, metavar="FLEET.toml", help="the fleet, such as examples/mixed-fleet.toml")
    up.add_argument("--engine", choices=_ENGINES, help="default: the file's, or the first that is here")
    up.add_argument("--out", type=Path, metavar="DIR", help="folder to fill (default: fleet-NAME)")
    up.add_argument("--rounds", type=int, metavar="N", help="so many rounds (default: the file's)")
    up.add_argument("--at-most", type=float, metavar="SECONDS", help="end it then, whatever its rounds have come to")
    up.add_argument("--detach", action="store_true", help="come back once it runs; it goes on by itself")
    up.add_argument(
        "--keep", action="store_true", help="leave the ended devices, for their logs and their disks, until down"
    )
    up.add_argument(
        "--compose", type=Path, metavar="FILE", help="start nothing: write the folder and a compose file of its devices"
    )
    up.add_argument("--json", action="store_true", help="events as JSON lines; what people read goes to stderr")
    up.set_defaults(command=_up)
    _add(
        commands, "ps", _ps, "which fleets and devices there are, and how they do", "fleet-emulate ps mixed", fleet=True
    )
    logs = _add(commands, "logs", _logs, "what a device printed", "fleet-emulate logs pi4-1 --follow")
    logs.add_argument("device", metavar="DEVICE", help="or coordinator")
    logs.add_argument("--follow", "-f", action="store_true", help="and what it prints from now on")
    run = _add(commands, "exec", _exec, "run a command in a device", "fleet-emulate exec pi4-1 -- edge-agent status")
    run.add_argument("device", metavar="DEVICE")
    run.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="with its arguments")
    for name, text in _ACTS.items():
        act = _add(commands, name, _act, text, f"fleet-emulate {name} pi4-1 zero-2")
        act.add_argument("devices", nargs="+", metavar="DEVICE")
        act.set_defaults(act=name)
    _add(commands, "down", _down, "end a fleet and take away all that it made", "fleet-emulate down mixed", fleet=True)


_ACTS = {
    "kill": "SIGKILL to devices; their service starts the agent again",
    "cut": "take devices' links away",
    "restore": "give devices' links back",
}


def _add(
    commands: "argparse._SubParsersAction[Parser]", name: str, do: Any, text: str, example: str, *, fleet: bool = False
) -> Parser:
    made = commands.add_parser(name, help=text, epilog=f"example: {example}")
    if fleet:
        made.add_argument("fleet", nargs="?", metavar="FLEET", help="default: the only one")
    else:
        made.add_argument("--fleet", metavar="NAME", help="default: the only one")
    if do not in (_logs, _exec):
        # Those two print what others said.
        made.add_argument("--json", action="store_true", help="JSON instead of text")
    made.set_defaults(command=do)
    return made


def _up(options: argparse.Namespace) -> int:
    # Imported here, as below, so that --help and mistakes answer at once.
    from rich.console import Console

    from devices.conductor.composing import write_compose
    from devices.conductor.detached import begin
    from devices.conductor.planning import fleet_of
    from devices.conductor.up import cause, run_fleet
    from devices.fleet_report import went_as_planned

    if options.detach:
        return begin(options)
    fleet = fleet_of(options, Console(stderr=options.json))
    if options.compose is not None:
        write_compose(fleet, options.compose)
        fleet.telling.event("compose", file=str(options.compose), folder=str(fleet.folder))
        fleet.telling.line(f"wrote {options.compose}; its first lines say what else is to be started")
        return 0
    try:
        record = run_fleet(fleet)
    except SparsefleetError as error:
        _tell_end(fleet, cause(error))
        raise
    except KeyboardInterrupt:
        _tell_end(fleet, "interrupted")
        raise
    _tell_end(fleet, record.outcome)
    if record.outcome == "taken down" and fleet.plan.coordinator is not None:
        # Its rounds are another's, so that this is how it ends.
        return 0
    if record.outcome in ("interrupted", "taken down"):
        return INTERRUPTED
    return 0 if went_as_planned(record) else 1


def _tell_end(fleet: "Fleet", outcome: str) -> None:
    """The result, also of a fleet that failed: as much of it as there is."""
    from rich.markup import escape

    record, telling = fleet.record, fleet.telling
    result: dict[str, object] = {"fleet": fleet.plan.name, "engine": fleet.engine.name, "outcome": outcome}
    if record is None:
        telling.event("ended", **result, rounds=0)
        return
    accuracy = record.rounds[-1].round.accuracy if record.rounds else None
    files = {"record": str(fleet.folder / "record.json"), "report": str(fleet.folder / "report.html")}
    telling.event("ended", **result, rounds=len(record.rounds), accuracy=accuracy, seconds=record.seconds, **files)
    telling.line(
        f"\n{escape(outcome)}: {len(record.rounds)} rounds in {record.seconds:.0f} s; "
        f"report [cyan]{escape(files['report'])}[/]"
    )


def _ps(options: argparse.Namespace) -> int:
    from devices.conductor import folder
    from devices.conductor.looking import look, print_fleets

    entries = folder.entries() if options.fleet is None else (folder.find(options.fleet),)
    looks = [look(entry) for entry in entries]
    if options.json:
        print(json.dumps({"fleets": looks}))
    elif looks:
        print_fleets(looks)
    else:
        raise NothingToDoError("no fleet runs here; fleet-emulate up FLEET.toml starts one")
    return 0


def _logs(options: argparse.Namespace) -> int:
    from devices.conductor import folder
    from devices.conductor.looking import engine_of

    entry = folder.find(options.fleet)
    if options.device == "coordinator":
        log = str(Path(entry.folder) / "logs" / "coordinator.log")
        return _become(("tail", "-n", "+1", *(("-F",) if options.follow else ()), log))
    return _become(engine_of(entry, options.device).logs(entry.fleet, options.device, follow=options.follow))


def _exec(options: argparse.Namespace) -> int:
    from devices.conductor import folder
    from devices.conductor.looking import engine_of

    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        raise ConfigurationError("exec: name a command, as in fleet-emulate exec pi4-1 -- edge-agent status")
    entry = folder.find(options.fleet)
    engine = engine_of(entry, options.device)
    return _become(engine.execute(entry.fleet, options.device, words, terminal=sys.stdin.isatty()))


def _become(words: Any) -> int:
    """Ends as that command does; signals are its own."""
    try:
        return subprocess.run(tuple(words)).returncode
    except FileNotFoundError:
        raise ConfigurationError(f"{words[0]}: no such command here; install it") from None


def _act(options: argparse.Namespace) -> int:
    from devices.conductor import folder
    from devices.conductor.control import ask
    from devices.conductor.looking import engine_of

    entry = folder.find(options.fleet)
    if folder.conducted(entry.fleet):
        said = ask(Path(entry.folder), {"do": options.act, "devices": options.devices})
    elif options.act == "kill":
        # All are there before the first is killed.
        for device, engine in [(device, engine_of(entry, device)) for device in options.devices]:
            engine.kill(entry.fleet, device)
        said = {"devices": options.devices}
    else:
        raise UnreachableError(
            f"fleet {entry.fleet!r}: its links ended with its conductor; "
            f"fleet-emulate down {entry.fleet} takes away the rest"
        )
    print(json.dumps(said) if options.json else f"{options.act}: {', '.join(said['devices'])}")
    return 0


def _down(options: argparse.Namespace) -> int:
    from devices.conductor.down import take_down

    names = take_down(options.fleet)
    print(json.dumps({"down": names}) if options.json else f"taken down: {', '.join(names)}")
    return 0
