"""An estimate of a device's energy: watts at rest while it is on, and what one busy core adds while one is busy."""

from devices.fleet.board import Power


def board_cpu_s(cpu_s: float, quota: float, real_s: float) -> float:
    """Seconds that a board's core would have been busy, of the emulated clock, for seconds of a core of this machine.

    A calibrated quota q with a clock of c makes a step of this machine q c times as long on the board.
    """
    return cpu_s / (quota * real_s)


def watt_hours(power: Power, on_s: float, busy_s: float) -> float:
    """For so many seconds on, and core seconds busy, of the emulated clock. Linear in busy cores; radio, disk and
    what hangs on the board are not in it."""
    return (power.idle_w * on_s + (power.busy_w - power.idle_w) * busy_s) / 3600
