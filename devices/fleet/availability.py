"""When a device is on: its duty, the trace of its day, and a battery that drains and must charge."""

import itertools
import zlib
from collections.abc import Iterator

import numpy as np

from devices.fleet.board import Availability, Battery

# From one time of the emulated clock to another.
Span = tuple[float, float]

# Shorter is no event, but what is left of a subtraction.
_INSTANT_S = 1e-6


def seeded(seed: int, device: str, *purpose: int) -> np.random.Generator:
    """A device's own generator for a purpose: the same whatever else is in the fleet."""
    return np.random.default_rng([seed, zlib.crc32(device.encode()), *purpose])


def on_spans(availability: Availability, watts: float, seed: int, device: str, until_s: float) -> tuple[Span, ...]:
    """When the device is on, in order, up to `until_s`. A longer look begins with the same.

    watts: what it takes while it is on, for its battery. A device that must charge is off, whatever its duty says.
    """
    spans = [(0.0, until_s)] if until_s > 0 else []
    if availability.duty < 1.0:
        spans = intersection(spans, _duty(availability, until_s))
    if availability.trace:
        spans = intersection(spans, _traced(availability, seed, device, until_s))
    if availability.battery is not None:
        spans = _powered(spans, availability, availability.battery, watts, until_s)
    return tuple(spans)


def union(spans: list[Span]) -> list[Span]:
    """The same times without overlaps, in order."""
    merged: list[Span] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1] + _INSTANT_S:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif end - begin > _INSTANT_S:
            merged.append((begin, end))
    return merged


def complement(spans: list[Span], until_s: float) -> list[Span]:
    """What is left of 0 to `until_s`."""
    edges = [0.0, *(edge for span in union(spans) for edge in span), until_s]
    return [
        (a, min(b, until_s)) for a, b in zip(edges[::2], edges[1::2], strict=True) if min(b, until_s) - a > _INSTANT_S
    ]


def intersection(a: list[Span], b: list[Span]) -> list[Span]:
    """The times that are in both; each in order and without overlaps."""
    common, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        begin, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if end - begin > _INSTANT_S:
            common.append((begin, end))
        if a[i][1] <= b[j][1]:
            i += 1
        else:
            j += 1
    return common


def _duty(availability: Availability, until_s: float) -> list[Span]:
    period, on_s = availability.period_s, availability.duty * availability.period_s
    first = availability.phase_s % period - period
    turns = range(int((until_s - first) / period) + 1)
    begins = [first + turn * period for turn in turns]
    return union([(max(0.0, begin), min(until_s, begin + on_s)) for begin in begins if begin + on_s > 0])


def _traced(availability: Availability, seed: int, device: str, until_s: float) -> list[Span]:
    """Drawn anew for each part of each day."""
    part_s = availability.day_s / len(availability.trace)
    spans = []
    for day in range(int(until_s / availability.day_s) + 1):
        draws = seeded(seed, device, 1, day).random(len(availability.trace))
        for part in np.flatnonzero(draws < np.array(availability.trace)).tolist():
            begin = day * availability.day_s + part * part_s
            spans.append((begin, min(until_s, begin + part_s)))
    return union([span for span in spans if span[0] < until_s])


def _powered(
    wanted: list[Span], availability: Availability, battery: Battery, watts: float, until_s: float
) -> list[Span]:
    """Of the times at which the device would be on, those at which its battery lets it.

    It drains by `watts` while on; mains, while there, gives charge_w, of which a device that is on takes its share.
    """
    full = battery.capacity_wh * 3600
    charge, able = battery.level * full, battery.level >= battery.off_below
    spans: list[Span] = []
    for begin, end, on, mains in _stretches(wanted, availability, until_s):
        at = begin
        while end - at > _INSTANT_S:
            running = on and able
            rate = (battery.charge_w if mains else 0.0) - (watts if running else 0.0)
            limit = _next_limit(battery, full, able, rate, on)
            lasts = end - at if limit is None else min(end - at, max(0.0, (limit - charge) / rate))
            if running and lasts > _INSTANT_S:
                spans.append((at, at + lasts))
            charge = min(full, max(0.0, charge + rate * lasts))
            at += lasts
            if limit is not None and abs(charge - limit) <= 1e-9 * full and end - at > _INSTANT_S:
                able = rate > 0
    return union(spans)


def _next_limit(battery: Battery, full: float, able: bool, rate: float, on: bool) -> float | None:
    """The charge, in joules, at which the device next goes off or may come back; None if it does not come to that."""
    if able and on and rate < 0:
        return battery.off_below * full
    if not able and rate > 0:
        return battery.on_above * full
    return None


def _stretches(
    wanted: list[Span], availability: Availability, until_s: float
) -> Iterator[tuple[float, float, bool, bool]]:
    """From, to, whether the device would be on, and whether there is mains; nothing changes within one."""
    days = range(int(until_s / availability.day_s) + 1)
    mains = union(
        [(d * availability.day_s + a, d * availability.day_s + b) for d in days for a, b in availability.mains]
    )
    edges = sorted({0.0, until_s, *(e for span in (*wanted, *mains) for e in span if 0 < e < until_s)})
    i = j = 0
    for begin, end in itertools.pairwise(edges):
        while i < len(wanted) and wanted[i][1] <= begin:
            i += 1
        while j < len(mains) and mains[j][1] <= begin:
            j += 1
        on = i < len(wanted) and wanted[i][0] <= begin
        plugged = j < len(mains) and mains[j][0] <= begin
        yield begin, end, on, plugged
