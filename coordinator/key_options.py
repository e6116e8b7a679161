"""The options of `fleet-coordinator keys`, apart from its work, which loads a library that other commands lack; and
--config, which all commands take."""

import argparse
from collections.abc import Callable
from pathlib import Path

# Where a packaged coordinator has its configuration.
CONFIG = Path("/etc/fleet-coordinator/coordinator.toml")

_EPILOG = """\
examples:
  fleet-coordinator keys rotate --online --config coordinator.toml            # the key that seals messages
  fleet-coordinator keys rotate --release --config coordinator.toml           # the key that signs bundles
  fleet-coordinator keys rotate --release --public new.pub --config coordinator.toml   # its private half is elsewhere
  fleet-coordinator keys rotate --online --key /media/stick/release.key --config coordinator.toml

The release key in force signs the next ring: the one in the trust folder, or --key FILE. A coordinator that runs takes
the new keys up within a second, and devices when they next greet it. Private keys that are replaced are removed.
"""


def add_keys(keys: argparse.ArgumentParser, rotate_keys: Callable[[argparse.Namespace], int]) -> None:
    """`keys` and `keys rotate`."""
    actions = keys.add_subparsers(metavar="ACTION", help="none: list them")
    rotate = actions.add_parser(
        "rotate",
        help="the next ring of keys, signed by the one before",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = rotate.add_mutually_exclusive_group(required=True)
    which.add_argument("--online", action="store_true", help="another key for the coordinator's messages")
    which.add_argument("--release", action="store_true", help="another key for bundles and rings")
    rotate.add_argument("--key", type=Path, metavar="FILE", help="the release key in force, if it is kept elsewhere")
    rotate.add_argument("--public", type=Path, metavar="FILE", help="of the new release key, made by fleet-export")
    rotate.add_argument("--days", type=float, default=730.0, help="for which an online key holds (default: 730)")
    add_config(rotate, again=True)
    rotate.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="JSON instead of text")
    rotate.set_defaults(command=rotate_keys)


def add_config(parser: argparse.ArgumentParser, *, again: bool = False) -> None:
    """again: of an action, whose command takes it as well."""
    default = argparse.SUPPRESS if again else CONFIG
    parser.add_argument("--config", type=Path, default=default, metavar="FILE", help=f"default: {CONFIG}")
