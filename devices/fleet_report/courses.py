"""Courses over time: the accuracy of the fleet's model, and the memory of a device."""

import math
from collections.abc import Sequence

from devices.charts import HEIGHT, WIDTH, nice_step
from devices.fleet.record import DeviceRecord, FleetRecord, Memory
from devices.fleet_report.axis import factor, ticks
from devices.page import clean
from devices.text import decimal_text, duration_text, percent_text

_LEFT, _RIGHT, _BOTTOM = 56, 20, 36
# Of a device's course so many samples are drawn, each the highest of its stretch.
_POINTS = 80
_WIDE, _TALL = 110, 24


def accuracy_chart(record: FleetRecord) -> str:
    """Accuracy over the emulated clock, with real time above where that is another."""
    points = [
        (c.at_s, c.round.accuracy, c.round.round)
        for c in record.rounds
        if c.round.accuracy is not None and math.isfinite(c.round.accuracy) and math.isfinite(c.at_s)
    ]
    if not points:
        return '<p class="none">No round was evaluated.</p>'
    end = max(1e-3, *(at for at, _, _ in points))
    top = 36 if factor(record) != 1 else 12
    low = max(0.0, math.floor(min(value for _, value, _ in points) * 10) / 10)
    low = min(low, 0.9)

    def x(at_s: float) -> float:
        return _LEFT + max(0.0, at_s) / end * (WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        return HEIGHT - _BOTTOM - (min(1.0, max(low, value)) - low) / (1 - low) * (HEIGHT - top - _BOTTOM)

    step = nice_step(1 - low)
    parts = []
    for i in range(round((1 - low) / step) + 1):
        height = y(low + i * step)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(_tick(_LEFT - 7, height + 4, f"{(low + i * step) * 100:.0f} %", "end"))
    parts += [_tick(x(at), HEIGHT - _BOTTOM + 17, text, "middle") for at, text in ticks(end, 4)]
    parts.append(_tick(WIDTH - _RIGHT, HEIGHT - 3, "emulated time", "end"))
    if factor(record) != 1:
        real = ticks(end * factor(record), 4)
        parts += [_tick(x(at / factor(record)), top - 8, text, "middle") for at, text in real[1:]]
        parts.append(_tick(WIDTH - _RIGHT, 10, "real time", "end"))
    path = " ".join(f"{x(at):.1f},{y(value):.1f}" for at, value, _ in points)
    parts.append(f'<polyline class="line first" points="{path}"/>')
    for at, value, number in points:
        said = (
            f"Round {number}: {percent_text(value)} at {duration_text(at)}, {duration_text(at * factor(record))} real"
        )
        parts.append(
            f'<circle class="dot first" cx="{x(at):.1f}" cy="{y(value):.1f}" r="{3 if len(points) <= 60 else 1.5}">'
            f"<title>{said}</title></circle>"
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="Accuracy over'
        f' time. Ends at {percent_text(points[-1][1])} after {duration_text(points[-1][0])}">{"".join(parts)}</svg>'
    )


def memory_course(device: DeviceRecord) -> str:
    """A small line with the limit above it; empty where fewer than two samples are known."""
    samples = [m for m in device.memory if math.isfinite(m.at_s) and math.isfinite(m.mib)]
    if len(samples) < 2:
        return ""
    begin, end = samples[0].at_s, samples[-1].at_s
    most = max(m.mib for m in samples)
    limit = device.in_force.limits.memory_mib
    # A limit far above would press the course flat.
    shown = limit if limit is not None and limit <= 4 * most else None
    high = max(most, shown or 0.0, 1e-6)

    def y(mib: float) -> float:
        return _TALL - 1 - max(0.0, mib) / high * (_TALL - 3)

    points = " ".join(
        f"{(m.at_s - begin) / max(1e-9, end - begin) * _WIDE:.0f},{y(m.mib):.1f}" for m in _thinned(samples)
    )
    line = f'<line class="limit" x1="0" x2="{_WIDE}" y1="{y(shown):.1f}" y2="{y(shown):.1f}"/>' if shown else ""
    text = f"{device.device}: memory from {duration_text(begin)} to {duration_text(end)}, at most {most:.0f} MiB"
    text += f", limit {limit} MiB" if limit is not None else ""
    return (
        f'<svg class="spark" viewBox="0 0 {_WIDE} {_TALL}" role="img"><title>{clean(text)}</title>'
        f'{line}<polyline class="line first" points="{points}"/></svg>'
    )


def memory_text(device: DeviceRecord) -> str:
    """The peak, and its share of the limit in force."""
    limit = device.in_force.limits.memory_mib
    text = decimal_text(device.peak_mib, 0, " MiB")
    if not limit or device.peak_mib is None or not math.isfinite(device.peak_mib):
        return text
    return f"{text}, {device.peak_mib / limit * 100:.0f} %"


def _thinned(samples: Sequence[Memory]) -> list[Memory]:
    size = math.ceil(len(samples) / _POINTS)
    return [max(samples[i : i + size], key=lambda m: m.mib) for i in range(0, len(samples), size)]


def _tick(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'
