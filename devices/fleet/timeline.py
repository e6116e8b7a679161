"""What happens to each device and when: faults, failures and availability as one list of things to do, in order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from devices.fleet.availability import Span, complement, on_spans, seeded, union
from devices.fleet.plan import Device, Fault, FaultKind, FleetPlan

# In this order where they fall together: what ends comes before what begins, and power is there before what needs it.
DeedKind = Literal[
    "disk-free", "restore", "power-off", "power-on", "throttle", "clock-jump", "cut", "disk-full", "kill"
]
_ORDER: dict[DeedKind, int] = {
    "disk-free": 0,
    "restore": 1,
    "power-off": 2,
    "power-on": 3,
    "throttle": 4,
    "clock-jump": 5,
    "cut": 6,
    "disk-full": 7,
    "kill": 8,
}
_PURPOSE = 2
_BEYOND_S = 1.0


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing to do to one device at a time of the emulated clock.

    factor: of its quota that a throttle leaves; 1.0 ends it. by_s: how far its clock jumps. why: what it comes from.
    """

    at_s: float
    device: str
    do: DeedKind
    factor: float = 1.0
    by_s: float = 0.0
    why: str = ""


def deeds(plan: FleetPlan, until_s: float, from_s: float = 0.0) -> tuple[Deed, ...]:
    """All from `from_s` on and before `until_s`; a longer look back or ahead changes nothing in between.

    Of overlapping faults of one kind on one device the whole time counts, and of throttles the smallest factor. A
    device without power has no agent to kill and no quota: a throttle that holds is said again when power is back.
    Links and disks keep what befell them. A power-off at 0 is a device that is not there yet.
    """
    places = {device.name: place for place, device in enumerate(plan.devices)}
    # What ends where the look ends is no event, and what is too short to be one must be so in every look.
    all_of_them = [deed for device in plan.devices for deed in _of_device(plan, device, until_s + _BEYOND_S)]
    wanted = [deed for deed in all_of_them if from_s <= deed.at_s < until_s]
    return tuple(sorted(wanted, key=lambda deed: (deed.at_s, _ORDER[deed.do], places[deed.device])))


def off_spans(plan: FleetPlan, device: Device, until_s: float) -> tuple[tuple[Span, str], ...]:
    """When the device has no power, and why; where causes overlap, the first one's."""
    board, faults = device.board, _faults(plan, device, "power-cut")
    there = on_spans(board.availability, board.power.busy_w, plan.seed, device.name, until_s)
    causes = [(span, "not available") for span in complement(list(there), until_s)]
    causes += [((fault.at_s, fault.at_s + (fault.for_s or board.off_s)), "power cut") for fault in faults]
    causes += [(span, "failure") for span in _failures(plan.seed, device, until_s)]
    whole = union([span for span, _ in causes])
    return tuple(
        (span, next(why for part, why in sorted(causes) if span[0] - 1e-6 <= part[0] <= span[1])) for span in whole
    )


def _of_device(plan: FleetPlan, device: Device, until_s: float) -> Iterator[Deed]:
    name = device.name
    off = off_spans(plan, device, until_s)
    for (begin, end), why in off:
        yield Deed(begin, name, "power-off", why=why)
        yield Deed(end, name, "power-on", why=why)
    for begin, end in union([_span(fault) for fault in _faults(plan, device, "cut")]):
        yield Deed(begin, name, "cut", why="fault")
        yield Deed(end, name, "restore", why="fault")
    for begin, end in union([_span(fault) for fault in _faults(plan, device, "disk-full")]):
        yield Deed(begin, name, "disk-full", why="fault")
        yield Deed(end, name, "disk-free", why="fault")
    for fault in _faults(plan, device, "clock-jump"):
        yield Deed(fault.at_s, name, "clock-jump", by_s=fault.by_s, why="fault")
    spans = [span for span, _ in off]
    for fault in _faults(plan, device, "kill"):
        if not _within(fault.at_s, spans):
            yield Deed(fault.at_s, name, "kill", why="fault")
    yield from _throttles(name, _faults(plan, device, "throttle"), spans)


def _throttles(name: str, faults: list[Fault], off: list[Span]) -> Iterator[Deed]:
    edges = {edge for fault in faults for edge in _span(fault)}
    returns = {end for _, end in off}
    last = 1.0
    for at in sorted(edges | (returns if faults else set())):
        if _within(at, off):
            continue
        factor = min([1.0, *(fault.factor for fault in faults if _span(fault)[0] <= at < _span(fault)[1])])
        if factor != last or (at in returns and factor != 1.0):
            yield Deed(at, name, "throttle", factor=factor, why="fault")
        last = factor


def _failures(seed: int, device: Device, until_s: float) -> list[Span]:
    """The waits between the end of one and the next are exponential, with the board's mtbf_s as their mean."""
    spans: list[Span] = []
    if device.board.mtbf_s == 0.0:
        return spans
    draw, at = seeded(seed, device.name, _PURPOSE), 0.0
    while (at := at + float(draw.exponential(device.board.mtbf_s))) < until_s:
        spans.append((at, at + device.board.off_s))
        at += device.board.off_s
    return spans


def _faults(plan: FleetPlan, device: Device, kind: FaultKind) -> list[Fault]:
    return sorted((f for f in plan.faults if f.do == kind and device.name in f.devices), key=lambda fault: fault.at_s)


def _span(fault: Fault) -> Span:
    return fault.at_s, fault.at_s + fault.for_s


def _within(at: float, spans: list[Span]) -> bool:
    return any(begin <= at < end for begin, end in spans)
