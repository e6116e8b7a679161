"""What several commands of edge-agent take: which configuration, and whether to print JSON."""

import argparse
from pathlib import Path

# Where a packaged agent has its configuration.
CONFIG = Path("/etc/edge-agent/agent.toml")


def config_to_make() -> Path:
    """Where a device's configuration belongs: with the packages, if they are installed, else here."""
    return CONFIG if CONFIG.parent.is_dir() else Path("agent.toml")


def add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=CONFIG, metavar="FILE", help="default: %(default)s; see: config sample"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
