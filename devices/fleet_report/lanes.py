"""Lanes of the timeline: where each device is drawn, and where times are."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from devices.fleet.record import DeviceRecord, FleetRecord, Happening

# More lanes than this are thin, by board and without names.
ROOMY = 40
# The narrowest that the times are drawn, in pixels, before they scroll; marks and labels are kept apart for it.
WIDTH = 600
TOP = 24.0
# Times run over this many units from left to right, and the plot leaves so much at either side for marks at its edge.
UNITS = 10_000
EDGE = 1.5

_Own = Mapping[str | None, Sequence[Happening]]


@dataclass(frozen=True, slots=True)
class Lane:
    """Where a device is drawn. bar: the top of its presence; tall: how high that is; signs: the middle of its marks."""

    label: str
    note: str
    device: DeviceRecord | None
    top: float
    bar: float
    tall: float
    height: float
    signs: float | None
    happenings: tuple[Happening, ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """From the emulated clock to places: in the plot's units, in percent of the whole width, and back from pixels."""

    end_s: float

    def units(self, at_s: float) -> int:
        return round(UNITS * self._share(at_s))

    def percent(self, at_s: float) -> str:
        return f"{EDGE + (100 - 2 * EDGE) * self._share(at_s):.2f}%"

    def seconds(self, pixels: float) -> float:
        return pixels / (WIDTH * (1 - 2 * EDGE / 100)) * self.end_s

    def _share(self, at_s: float) -> float:
        return min(1.0, max(0.0, at_s / self.end_s)) if math.isfinite(at_s) else 0.0


def lanes_of(record: FleetRecord, *, roomy: bool) -> list[Lane]:
    """From the top: one for what befell the whole fleet, if anything did, and one for each device."""
    known = {device.device for device in record.devices}
    everyone = tuple(h for h in record.happenings if h.device not in known)
    lanes = [Lane("fleet", "", None, TOP, TOP + 9, 0, 22, TOP + 11, everyone)] if everyone or not known else []
    own: dict[str | None, list[Happening]] = {}
    for happening in record.happenings:
        own.setdefault(happening.device, []).append(happening)
    top = TOP + sum(lane.height for lane in lanes)
    return lanes + (_roomy if roomy else _thin)(record.devices, own, top)


def _roomy(devices: Sequence[DeviceRecord], own: _Own, top: float) -> list[Lane]:
    """With names and signs, in the record's order."""
    height = 34
    return [
        Lane(d.device, d.tier or "", d, at, at + 20, 9, height, at + 10, tuple(own.get(d.device, ())))
        for d, at in ((d, top + i * height) for i, d in enumerate(devices))
    ]


def _thin(devices: Sequence[DeviceRecord], own: _Own, top: float) -> list[Lane]:
    """By board, each with its name once, room enough for that, and a gap after it."""
    by_board: dict[str, list[DeviceRecord]] = {}
    for device in devices:
        by_board.setdefault(device.board, []).append(device)
    lanes, height = list[Lane](), 4
    for board, members in by_board.items():
        for i, d in enumerate(members):
            label, note = ("", "") if i else (board, f"{len(members)} of them")
            at = top + i * height
            lanes.append(Lane(label, note, d, at, at + 1, 3, height, None, tuple(own.get(d.device, ()))))
        took = max(34, len(members) * height) + 8
        lanes[-1] = replace(lanes[-1], height=top + took - lanes[-1].top)
        top += took
    return lanes
