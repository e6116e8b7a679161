"""Charts as inline SVG text: lines and stacked bars over rounds, coloured by the page's style sheet."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

# The page shows a chart at 320 to 520 pixels: with this view box its text stays readable on a phone.
WIDTH, HEIGHT = 380, 235
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 36

Style = Literal["first", "second", "reference"]


@dataclass(frozen=True, slots=True)
class Series:
    """One value a round, None where there is none. The style names a class of the page's style sheet."""

    label: str
    values: tuple[float | None, ...]
    style: Style


@dataclass(frozen=True, slots=True)
class Chart:
    """What to draw. `hover` has one text a round; `tick` writes a value beside the axis; `low`..`high` is the axis."""

    name: str
    description: str
    rounds: tuple[int, ...]
    series: tuple[Series, ...]
    hover: tuple[str, ...]
    tick: Callable[[float], str]
    low: float
    high: float


def line_chart(chart: Chart) -> str:
    """Lines with a dot a round; gaps where a value is missing."""
    frame = _Frame(chart, band=False)
    parts = [_axes(frame)]
    for series in chart.series:
        for run in _runs(series.values):
            points = [(frame.x(i), frame.y(value)) for i, value in run]
            if len(points) > 1:
                path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
                parts.append(f'<polyline class="line {series.style}" points="{path}"/>')
            # Beyond this many rounds dots would merge into a thick line.
            if series.style != "reference" and (len(chart.rounds) <= 60 or len(points) == 1):
                parts += [f'<circle class="dot {series.style}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in points]
    return _svg(chart, parts, frame)


def bar_chart(chart: Chart) -> str:
    """Bars a round, the series stacked in their order."""
    frame = _Frame(chart, band=True)
    width = max(1.0, frame.step * 0.72)
    parts = [_axes(frame)]
    for i in range(len(chart.rounds)):
        base = 0.0
        for series in chart.series:
            value = series.values[i]
            if value is None or value <= 0:
                continue
            top, bottom = frame.y(base + value), frame.y(base)
            parts.append(
                f'<rect class="bar {series.style}" x="{frame.x(i) - width / 2:.1f}" y="{top:.1f}"'
                f' width="{width:.1f}" height="{bottom - top:.1f}"/>'
            )
            base += value
    return _svg(chart, parts, frame)


def nice_step(span: float, most: int = 5) -> float:
    """The smallest of 1, 2, 5 times a power of ten that cuts `span` into at most `most` steps."""
    if not span > 0:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(span / most))
    return next(power * factor for factor in (1, 2, 5, 10, 20) if span / (power * factor) <= most + 1e-9)


def nice_top(values: Sequence[float]) -> float:
    """An axis end at or above every value."""
    top = max(values, default=0.0)
    step = nice_step(top)
    return max(math.ceil(top / step - 1e-9), 1) * step


class _Frame:
    """Where values and rounds lie in the picture. `band` leaves half a step beside the first and last round."""

    def __init__(self, chart: Chart, *, band: bool) -> None:
        self.chart = chart
        self.count = len(chart.rounds)
        span = WIDTH - _LEFT - _RIGHT
        self.step = span / max(1, self.count if band else self.count - 1)
        self.first = _LEFT + (self.step / 2 if band else 0)
        if self.count == 1:
            self.first = _LEFT + span / 2

    def x(self, index: int) -> float:
        return self.first + self.step * index

    def y(self, value: float) -> float:
        span = self.chart.high - self.chart.low
        share = (value - self.chart.low) / span if span > 0 else 0.0
        return HEIGHT - _BOTTOM - min(1.0, max(0.0, share)) * (HEIGHT - _TOP - _BOTTOM)


def _axes(frame: _Frame) -> str:
    chart, parts = frame.chart, []
    step = nice_step(chart.high - chart.low)
    for i in range(round((chart.high - chart.low) / step) + 1):
        value = chart.low + i * step
        y = frame.y(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(chart.tick(value))}</text>'
        )
    every = max(1, round(nice_step(frame.count, 8)))
    for i, number in enumerate(chart.rounds):
        if number % every == 0 or frame.count == 1:
            x = frame.x(i)
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle">{number}</text>'
            )
    parts.append(f'<text class="tick" x="{WIDTH - _RIGHT}" y="{HEIGHT - 3}" text-anchor="end">round</text>')
    return "".join(parts)


def _svg(chart: Chart, parts: Sequence[str], frame: _Frame) -> str:
    hovers = []
    for i, text in enumerate(chart.hover):
        left = max(_LEFT, frame.x(i) - frame.step / 2)
        right = min(WIDTH - _RIGHT, frame.x(i) + frame.step / 2)
        hovers.append(
            f'<rect class="hover" x="{left:.1f}" y="{_TOP}" width="{max(0.0, right - left):.1f}"'
            f' height="{HEIGHT - _TOP - _BOTTOM}"><title>{escape(text)}</title></rect>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' aria-label="{escape(chart.name)}. {escape(chart.description)}">{"".join(parts)}{"".join(hovers)}</svg>'
    )


def _runs(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """The stretches without a gap, as (index, value)."""
    runs: list[list[tuple[int, float]]] = [[]]
    for i, value in enumerate(values):
        if value is None or not math.isfinite(value):
            runs.append([])
        else:
            runs[-1].append((i, value))
    return [run for run in runs if run]
