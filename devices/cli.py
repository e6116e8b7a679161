"""The fleet-emulate command: a whole training fleet on this machine."""

import argparse
import json
import signal
import sys
from io import TextIOWrapper
from pathlib import Path
from types import FrameType

from devices import link_commands, partition_command
from devices.conductor import commands as conductor_commands
from devices.engines import doctor
from devices.fleet import commands as fleet_commands
from devices.images import images_command
from devices.presets import CODEC, WHOLE
from devices.report_command import add_report_command
from protocol.command import Parser, run_command

EPILOG = """\
examples:
  fleet-emulate demo                                     # handwritten digits, 5 devices
  fleet-emulate demo --data hapt --agents 7 --out /tmp/hapt
  fleet-emulate demo --codec topk:0.05/float16 --json
  fleet-emulate boards                                   # what can be emulated
  fleet-emulate validate examples/mixed-fleet.toml       # what that would start here
  fleet-emulate proxy --to 127.0.0.1:8883 --profile lte-poor
  fleet-emulate doctor                                   # can a fleet in containers be emulated here?
  fleet-emulate partition --data fashion --devices 16 --alpha 0.1 --out labels.svg

exit codes: 0 target reached, 1 not reached or failed, 3 configuration, 130 interrupted
"""

# Also when the terminal goes away.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _EndedError(Exception):
    """A signal asked us to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


def main(arguments: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    for number in _ENDING:
        signal.signal(number, _end)
    for stream in (sys.stdout, sys.stderr):
        # A terminal of another encoding gets a question mark for a tick, not a traceback.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        return run_command(_parser(), arguments)
    except _EndedError as ended:
        print(f"fleet-emulate: interrupted by {ended}; every process has ended", file=sys.stderr)
        return ended.exit_code


def _end(number: int, _: FrameType | None) -> None:
    # Once is enough: what follows is bounded, and must not be cut short half-way.
    for other in _ENDING:
        signal.signal(other, signal.SIG_IGN)
    raise _EndedError(number)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="fleet-emulate",
        description="A whole training fleet on this machine, to try all of it before buying a board.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="export a small model, start broker, coordinator and agents, train, and report",
        epilog="example: fleet-emulate demo --data digits --agents 5 --out demo",
    )
    demo.add_argument("--data", default="digits", metavar="NAME", help="digits (built in), hapt, fashion or fsdd")
    demo.add_argument("--agents", type=int, default=5, metavar="N", help="agent processes (default: 5)")
    demo.add_argument("--rounds", type=int, metavar="N", help="stop after N rounds (default: by data set)")
    demo.add_argument(
        "--target-accuracy", type=float, metavar="A", help="stop at this held-out accuracy (default: by data set)"
    )
    demo.add_argument("--codec", default=CODEC, help=f"how updates are packed (default: {CODEC})")
    demo.add_argument(
        "--downlink", default=WHOLE, metavar="CODEC", help=f"how the model travels to devices (default: {WHOLE}, whole)"
    )
    demo.add_argument("--link", metavar="NAME|FILE", help="a bad link before every agent: see fleet-emulate links")
    demo.add_argument("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder to fill (default: demo)")
    demo.add_argument("--json", action="store_true", help="one JSON object with the result; progress goes to stderr")
    demo.set_defaults(command=_demo)
    conductor_commands.add_commands(commands)
    link_commands.add_commands(commands)
    fleet_commands.add_commands(commands)
    doctor.add_command(commands)
    images_command.add_commands(commands)
    add_report_command(commands)
    partition_command.add(commands)
    return parser


def _demo(options: argparse.Namespace) -> int:
    # Imported here so that --help and mistakes answer at once.
    from rich.console import Console

    from devices.demo import Options, run_demo

    chosen = Options(
        data=options.data,
        agents=options.agents,
        rounds=options.rounds,
        target_accuracy=options.target_accuracy,
        codec=options.codec,
        downlink=options.downlink,
        link=options.link,
        out=options.out,
    )
    report = run_demo(chosen, Console(stderr=options.json))
    if options.json:
        facts = {
            "data": report.data,
            "agents": len(report.devices),
            "link": options.link,
            "rounds": len(report.rounds),
            "accuracy": report.accuracy,
            "target_accuracy": report.target_accuracy,
            "reached": report.reached,
            "seconds": round(report.seconds, 2),
            "bytes_up": report.bytes_up,
            "bytes_down": report.bytes_down,
            "report": str(options.out / "report.html"),
            "model": str(options.out / "inference.onnx"),
        }
        print(json.dumps(facts))
    return 0 if report.reached else 1
