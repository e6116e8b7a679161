"""`edge-agent check`: of this device, or with --bundle of a bundle on it."""

import argparse
from pathlib import Path

from edge_agent.options import add_config, add_json
from protocol.command import Parser
from protocol.errors import ConfigurationError

EPILOG = """\
examples:
  edge-agent check                     # configuration, clock, disk, identity, broker, runtime, data, one training step
  edge-agent check --bundle bundle     # does this device compute what torch computed, and how fast?

It works while the agent runs, and does not disturb it: of its connection the agent's own word is taken.
exit codes: 0 no error, else the first error's: 1 this device (clock, disk, runtime), 3 configuration or data,
4 broker unreachable, 5 not enrolled, or the certificate is over"""


def add_parser(commands: "argparse._SubParsersAction[Parser]") -> None:
    check = commands.add_parser(
        "check",
        help="look this device over: what works, what does not, and what to do about it",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("--bundle", type=Path, help="a folder made by fleet-export: try that alone")
    add_config(check)
    check.add_argument("--backend", help="in place of the configuration's (default: auto)")
    add_json(check)
    check.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    # Imported here so that --help and mistakes answer at once.
    try:
        from edge_agent import check, self_check
    except ImportError as error:
        raise ConfigurationError(f"this installation is incomplete ({error}); install the agent again") from None

    return self_check.run(options) if options.bundle is None else check.run(options)
