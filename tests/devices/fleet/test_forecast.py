"""What a fleet's file comes to on a machine is said before anything starts."""

from pathlib import Path

import pytest

from devices.engines.engine import Limits
from devices.fleet.clock import USED
from devices.fleet.fleet_file import load_fleet
from devices.fleet.forecast import Machine, forecast
from devices.fleet.plan import Device, FleetPlan
from protocol.errors import ConfigurationError
from tests.devices.fleet.plans import board, plan

_EXAMPLES = Path(__file__).parents[3] / "examples"
_MACHINE = Machine("amd64", 2, 16_000, {"amd64": 1.5, "arm64": 80.0})


def test_quotas_fit_the_machine_and_every_device_keeps_its_boards_memory_and_disk() -> None:
    mixed = load_fleet(_EXAMPLES / "mixed-fleet.toml")
    found = forecast(mixed, _MACHINE)
    quotas = [limits.cores for limits in found.limits.values() if limits.cores is not None]
    assert len(quotas) == 8
    assert sum(quotas) <= USED * 2 + 1e-9
    assert max(quotas) <= 1
    assert (found.limits["pi4-1"].memory_mib, found.limits["gateway"].disk_mib) == (4096, 61035)
    assert found.clock.real_s == pytest.approx(80.0 / 0.8 / mixed.devices[0].board.step_ms, abs=0.05)


def test_the_notes_say_what_the_emulation_is_not() -> None:
    fleet = plan(
        Device("native", board()),
        Device("qemu", board(), native=False),
        Device("light", board(), light=True),
        Device("given", board(), cores=0.2),
    )
    found = forecast(fleet, _MACHINE)
    notes = "\n".join(found.notes)
    for said in (
        "One second of the emulated clock lasts 5 real ones",
        "4 devices run on 2 cores in time slots",
        "native, light, given run amd64 programs",
        "qemu run their boards' instructions under QEMU",
        "given have cores given in the fleet's file",
        "1 light agents have no limits",
        "How fast a board's disk writes is not emulated",
    ):
        assert said in notes
    assert found.limits["light"] == Limits()
    assert found.limits["given"].cores == 0.2
    small = Machine("amd64", 2, 400, _MACHINE.full_speed_ms)
    assert "Agents may want 472 MiB, and this machine has 400" in "\n".join(forecast(fleet, small).notes)


def test_a_quota_below_what_the_kernel_gives_is_said() -> None:
    fleet = FleetPlan("fleet", (Device("slow", board(step_ms=800.0)),), "digits", 1, clock=2.0)
    found = forecast(fleet, _MACHINE)
    assert found.limits["slow"].cores == 0.002
    assert any(note.startswith("slow: the kernel gives no quota below 0.002") for note in found.notes)


def test_a_clock_that_this_machine_cannot_keep_is_refused() -> None:
    fleet = FleetPlan("fleet", (Device("qemu", board(), native=False),), "digits", 1, clock=1.0)
    with pytest.raises(ConfigurationError, match=r"clock: 1 real .* needs, 5 \(qemu needs 80% of a core"):
        forecast(fleet, _MACHINE)
