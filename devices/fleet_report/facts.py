"""The facts of a run for a terminal: as JSON, and as a table."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Table
from rich.text import Text

from devices.fleet.record import DeviceRecord, FleetRecord
from devices.fleet_report.courses import memory_text
from devices.fleet_report.device_tables import FEW, energy_text, runs_as, sum_of
from devices.fleet_report.limits import far_off, limit_text, not_in_force, step_error
from devices.fleet_report.outcome import accuracy, concerns, outcome
from devices.text import MISSING, bytes_text, plain_text

_COUNTS = ("accepted", "discarded", "rejected", "restarts")
_DEVICE = ("device", "runs as", "cores", "memory", "step", "error", "peak", "up", "down", "energy", *_COUNTS)
_BOARD = ("board", "devices", "steps far off", "up", "down", "energy", *_COUNTS)


def facts(record: FleetRecord) -> dict[str, Any]:
    """What the report says, without courses and times of what happened; null where nothing is known."""
    verdict, sentence = outcome(record)
    devices = record.devices
    return {
        "fleet": record.fleet,
        "engine": record.engine,
        "data": record.data,
        "seed": record.seed,
        "outcome": record.outcome,
        "reached": verdict == "reached",
        "sentence": sentence,
        "concerns": concerns(record),
        "rounds": len(record.rounds),
        "accuracy": accuracy(record),
        "clock": _known(record.clock),
        "seconds": _known(record.seconds),
        "bytes_up": sum(d.bytes_up for d in devices),
        "bytes_down": sum(d.bytes_down for d in devices),
        "energy_wh_estimate": _known(sum_of(devices, lambda d: d.energy_wh)),
        "devices": [_device(d) for d in devices],
        "notes": list(record.notes),
    }


def facts_table(record: FleetRecord) -> Table:
    """A row a device, or a row a board where there are many."""
    many = len(record.devices) > FEW
    table = Table(box=None, header_style="dim", pad_edge=False)
    for head in _BOARD if many else _DEVICE:
        table.add_column(head, justify="left" if head in ("device", "board", "runs as") else "right")
    rows = _board_rows(record.devices) if many else [_cells(d) for d in record.devices]
    for row in rows:
        table.add_row(*(Text(plain_text(cell)) for cell in row))
    return table


def _board_rows(devices: Sequence[DeviceRecord]) -> list[tuple[str, ...]]:
    rows = []
    for board in dict.fromkeys(d.board for d in devices):
        own = [d for d in devices if d.board == board]
        timed = [d for d in own if step_error(d) is not None]
        rows.append(
            (
                board,
                str(len(own)),
                f"{sum(map(far_off, timed))} of {len(timed)}" if timed else MISSING,
                bytes_text(sum(d.bytes_up for d in own)),
                bytes_text(sum(d.bytes_down for d in own)),
                energy_text(sum_of(own, lambda d: d.energy_wh)),
                *(str(sum(getattr(d, key) for d in own)) for key in _COUNTS),
            )
        )
    return rows


def _cells(d: DeviceRecord) -> tuple[str, ...]:
    error, held = step_error(d), d.in_force.limits
    return (
        d.device,
        runs_as(d),
        limit_text(d.asked, held, "cores"),
        limit_text(d.asked, held, "memory_mib"),
        f"{d.calibration.measured_ms:.1f} ms" if d.calibration else MISSING,
        f"{error * 100:+.1f} %" if error is not None else MISSING,
        memory_text(d),
        bytes_text(d.bytes_up),
        bytes_text(d.bytes_down),
        energy_text(d.energy_wh),
        str(d.accepted),
        str(d.discarded),
        str(d.rejected),
        str(d.restarts),
    )


def _device(d: DeviceRecord) -> dict[str, Any]:
    error = step_error(d)
    return {
        "device": d.device,
        "board": d.board,
        "architecture": d.architecture,
        "native": d.native,
        "tier": d.tier,
        "link": d.link,
        "asked": {key: _known(value) for key, value in asdict(d.asked).items()},
        "in_force": {key: _known(value) for key, value in asdict(d.in_force.limits).items()},
        "not_in_force": {one.limit: one.why for one in not_in_force(d)},
        "catalogue_ms": _known(d.calibration.catalogue_ms if d.calibration else None),
        "measured_ms": _known(d.calibration.measured_ms if d.calibration else None),
        "step_error": None if error is None else round(error, 4),
        "enrolled_s": _known(d.enrolled_s),
        "step_ms": _known(d.step_ms),
        "peak_mib": _known(d.peak_mib),
        "cpu_s": _known(d.cpu_s),
        "bytes_up": d.bytes_up,
        "bytes_down": d.bytes_down,
        "energy_wh_estimate": _known(d.energy_wh),
        "accepted": d.accepted,
        "discarded": d.discarded,
        "rejected": d.rejected,
        "staleness": _known(d.staleness),
        "restarts": d.restarts,
        "out_of_memory": d.out_of_memory,
    }


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
