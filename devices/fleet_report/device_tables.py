"""Tables of devices: as they really were, what each did, and both by board."""

import math
from collections.abc import Callable, Iterable, Sequence

from devices.fleet.calibration import TOLERANCE
from devices.fleet.record import DeviceRecord, FleetRecord
from devices.fleet_report.axis import horizon
from devices.fleet_report.courses import memory_course, memory_text
from devices.fleet_report.limits import far_off, limit_text, not_in_force, step_error
from devices.page import Cell, Html, clean, folded, html, table
from devices.text import MISSING, bytes_text, decimal_text, duration_text, number_text, percent_text

# More devices than this are shown by board, and each one when it is asked for.
FEW = 24

_WAS = (
    "Device",
    "Board",
    "Runs as",
    "Cores",
    "Memory",
    "Disk",
    "Catalogue step",
    "Step here",
    "Error",
    "Enrolled after",
    "Link",
)
_DID = (
    "Device",
    "Tier",
    "There",
    "Step in training",
    "Peak memory",
    "Its course",
    "Sent up",
    "Sent down",
    "Energy",
    "Accepted",
    "Discarded",
    "Rejected",
    "Staleness",
    "Restarts",
    "Killed for memory",
)


def device_tables(record: FleetRecord) -> str:
    """The sections on devices; by board first where there are many."""
    end_s = horizon(record)
    was = f'<div class="was">{table("The fleet as it was", _WAS, [_was(d) for d in record.devices])}</div>'
    did = _numbers(table("What each device did", _DID, [_did(d, end_s) for d in record.devices]))
    energy = (
        '<p class="note">Energy is an estimate, not a measurement: the watts that the catalogue gives the board at rest'
        " for as long as it was there, and what one busy core adds for each second that it was busy; radio, disk and"
        " what hangs on the board are not in it. A step in training is the mean that the agent reported."
        " Staleness is the mean number of versions that folded updates were behind. Peak memory has its share of the"
        " limit in force beside it.</p>"
    )
    calibrated = (
        '<p class="note">Cores, memory and disk are as read back from where the kernel keeps them; both figures are'
        " given where that is not what was asked for. The step is the reference training step on one core, in"
        " milliseconds of the emulated clock: what the catalogue gives the board, and what was timed here within the"
        f" quota. An error over {TOLERANCE * 100:.0f} % is marked.</p>"
    )
    if len(record.devices) <= FEW:
        return (
            f"<section><h2>The fleet as it was</h2>{was}{calibrated}{_why(record.devices)}</section>"
            f"<section><h2>What each device did</h2>{did}{energy}</section>"
        )
    return (
        f"<section><h2>By board</h2>{_boards(record)}{calibrated}{_why(record.devices)}{energy}</section>"
        f"{folded(f'Each of {len(record.devices)} devices as it was', was)}"
        f"{folded(f'What each of {len(record.devices)} devices did', did)}"
    )


def runs_as(device: DeviceRecord) -> str:
    """amd64, or which other machine's instructions are emulated."""
    return f"{device.architecture}, {'native' if device.native else 'emulated'}"


def sum_of(devices: Iterable[DeviceRecord], of: Callable[[DeviceRecord], float]) -> float:
    """Of what is known; NaN where nothing is."""
    known = [value for value in map(of, devices) if math.isfinite(value)]
    return math.fsum(known) if known else math.nan


def _was(d: DeviceRecord) -> tuple[Cell, ...]:
    asked, held, found = d.asked, d.in_force.limits, d.calibration
    missing = {one.limit for one in not_in_force(d)}

    def limit(key: str, name: str) -> Cell:
        text = limit_text(asked, held, key)
        return Html(f'<em class="alarm">{clean(text)}</em>') if name in missing else text

    return (
        d.device,
        d.board,
        runs_as(d),
        limit("cores", "cores"),
        limit("memory_mib", "memory"),
        limit("disk_mib", "disk"),
        decimal_text(found.catalogue_ms, 1, " ms") if found else MISSING,
        decimal_text(found.measured_ms, 1, " ms") if found else MISSING,
        _error(d),
        duration_text(d.enrolled_s),
        Html(f'<span class="link">{clean(d.link or MISSING)}</span>'),
    )


def _did(d: DeviceRecord, end_s: float) -> tuple[Cell, ...]:
    there = sum(s.end_s - s.begin_s for s in d.presence if s.presence != "off")
    return (
        d.device,
        d.tier or MISSING,
        percent_text(min(1.0, max(0.0, there / end_s)) if d.presence and math.isfinite(there) else None),
        decimal_text(d.step_ms, 1, " ms"),
        memory_text(d),
        Html(memory_course(d) or MISSING),
        bytes_text(d.bytes_up),
        bytes_text(d.bytes_down),
        energy_text(d.energy_wh),
        number_text(d.accepted),
        number_text(d.discarded),
        number_text(d.rejected),
        decimal_text(d.staleness, 2),
        number_text(d.restarts),
        _alarm_number(d.out_of_memory),
    )


def energy_text(watt_hours: float) -> str:
    """With a unit that leaves three digits."""
    if not math.isfinite(watt_hours):
        return MISSING
    return f"{watt_hours:.3g} Wh" if watt_hours >= 1 else f"{watt_hours * 1000:.3g} mWh"


def _alarm_number(value: int) -> Cell:
    return Html(f'<em class="alarm">{number_text(value)}</em>') if value else "0"


def _error(d: DeviceRecord) -> Cell:
    error = step_error(d)
    if error is None:
        return MISSING
    text = f"{error * 100:+.1f} %"
    return Html(f'<em class="alarm">{text}</em>') if far_off(d) else text


def _boards(record: FleetRecord) -> str:
    by_board: dict[str, list[DeviceRecord]] = {}
    for device in record.devices:
        by_board.setdefault(device.board, []).append(device)
    head = (
        "Board",
        "Devices",
        "Runs as",
        "Cores",
        "Memory",
        f"Over {TOLERANCE * 100:.0f} % off",
        "Largest error",
        "Peak memory",
        "Sent up",
        "Sent down",
        "Energy",
        "Accepted",
        "Discarded",
        "Rejected",
        "Restarts",
        "Killed for memory",
    )
    return _numbers(table("By board", head, [_board(name, devices) for name, devices in by_board.items()]))


def _numbers(content: str) -> str:
    """A table whose last column is no text."""
    return f'<div class="numbers">{content}</div>'


def _board(name: str, devices: Sequence[DeviceRecord]) -> tuple[Cell, ...]:
    timed = [d for d in devices if step_error(d) is not None]
    worst = max(timed, key=lambda d: abs(step_error(d) or 0), default=None)
    off = sum(map(far_off, timed))
    peaks = [d.peak_mib for d in devices if d.peak_mib is not None and math.isfinite(d.peak_mib)]
    return (
        name,
        number_text(len(devices)),
        _each(runs_as(d) for d in devices),
        _each(limit_text(d.asked, d.in_force.limits, "cores") for d in devices),
        _each(limit_text(d.asked, d.in_force.limits, "memory_mib") for d in devices),
        Html(f'<em class="alarm">{off} of {len(timed)}</em>') if off else f"0 of {len(timed)}" if timed else MISSING,
        _error(worst) if worst else MISSING,
        decimal_text(max(peaks, default=None), 0, " MiB"),
        bytes_text(sum(d.bytes_up for d in devices)),
        bytes_text(sum(d.bytes_down for d in devices)),
        energy_text(sum_of(devices, lambda d: d.energy_wh)),
        number_text(sum(d.accepted for d in devices)),
        number_text(sum(d.discarded for d in devices)),
        number_text(sum(d.rejected for d in devices)),
        number_text(sum(d.restarts for d in devices)),
        _alarm_number(sum(d.out_of_memory for d in devices)),
    )


def _each(texts: Iterable[str]) -> str:
    """What all have in common, or how many have what."""
    counted: dict[str, int] = {}
    for text in texts:
        counted[text] = counted.get(text, 0) + 1
    if len(counted) == 1:
        return next(iter(counted))
    if len(counted) > 3:
        return f"{len(counted)} different"
    return "; ".join(f"{count} with {text}" for text, count in counted.items())


def _why(devices: Sequence[DeviceRecord]) -> str:
    """Reasons, each once with those whom it befell."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for device in devices:
        for one in not_in_force(device):
            reasons.setdefault((one.limit, one.why), []).append(one.device)
    if not reasons:
        return ""
    rows = "".join(
        f"<li><strong>{html(limit)}</strong> of {names_text(names)}: {html(why)}</li>"
        for (limit, why), names in reasons.items()
    )
    return f'<div class="why"><h3>Not in force, and why</h3><ul>{rows}</ul></div>'


def names_text(names: Sequence[str], most: int = 5) -> str:
    """Markup of some names, and how many more."""
    told = ", ".join(clean(name) for name in names[:most])
    return told + (f" and {len(names) - most} more" if len(names) > most else "")
