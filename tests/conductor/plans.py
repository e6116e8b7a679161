"""Fleets for tests of the conductor, as plans."""

from pathlib import Path

from devices.fleet.fleet_file import load_fleet
from devices.fleet.plan import FleetPlan

SMALL = """
name = "small"
data = "digits"
rounds = 4
clock = 2.0

[[devices]]
board = "raspberry-pi-4"
name = "pi4"
count = 2

[[devices]]
board = "raspberry-pi-5"
name = "light"
light = true
"""


def plan_of(folder: Path, more: str = "") -> FleetPlan:
    """The small fleet, with more at its end."""
    path = folder / "small.toml"
    path.write_text(SMALL + more)
    return load_fleet(path)
