"""Boards and plans for the tests, with as little in them as they need."""

from devices.fleet.board import Availability, Board, Power
from devices.fleet.plan import Device, Fault, FleetPlan
from devices.links import Profile


def board(
    name: str = "board",
    *,
    step_ms: float = 20.0,
    availability: Availability | None = None,
    mtbf_s: float = 0.0,
    off_s: float = 30.0,
) -> Board:
    return Board(
        name=name,
        title=name,
        architecture="arm64",
        cpu="4 x Cortex-A53",
        cores=4,
        step_ms=step_ms,
        memory_mib=512,
        disk_mib=1024,
        disk_write_mib_s=20.0,
        power=Power(1.0, 2.0),
        link=Profile(),
        availability=availability or Availability(),
        mtbf_s=mtbf_s,
        off_s=off_s,
    )


def plan(*devices: Device, faults: tuple[Fault, ...] = (), seed: int = 1) -> FleetPlan:
    return FleetPlan("fleet", devices, "digits", 1, seed=seed, faults=faults)
