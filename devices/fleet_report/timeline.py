"""The timeline: a lane a device with when it was there, what befell it and which rounds folded its update."""

import math
from collections.abc import Sequence

from devices.charts import nice_step
from devices.fleet.record import Committed, DeviceRecord, FleetRecord
from devices.fleet_report.axis import factor, horizon, ticks
from devices.fleet_report.happenings import KINDS, UNMARKED, Mark, kind_of, lasting, marks, word
from devices.fleet_report.lanes import EDGE, ROOMY, TOP, UNITS, WIDTH, Lane, Scale, lanes_of
from devices.page import clean
from devices.text import duration_text, percent_text

# So close, in pixels, no two marks, nor two rounds' numbers, are drawn.
_MARK = 16
_ROUND = 26
_AXIS = 20
# Of more rounds than this the marks are put to every so manieth unit of the plot.
_MANY_ROUNDS = 200
_COARSE = 40
# The width of a letter in the names.
_LETTER = 7.0

_Axis = tuple[str, Sequence[tuple[float, str]], float]


def timeline(record: FleetRecord) -> str:
    """The figure, with its legend; empty where nothing has a time."""
    if not (record.happenings or record.rounds or any(d.presence for d in record.devices)):
        return ""
    roomy = len(record.devices) <= ROOMY
    scale = Scale(horizon(record))
    lanes = lanes_of(record, roomy=roomy)
    bottom = lanes[-1].top + lanes[-1].height
    said = f"Timeline of {len(record.devices)} devices over {duration_text(scale.end_s)} of emulated time"
    axes: list[_Axis] = [("emulated", ticks(scale.end_s, 6), 1.0)]
    if factor(record) != 1:
        axes.append(("real time", ticks(scale.end_s * factor(record), 6), factor(record)))
    height = bottom + _AXIS * len(axes) + 4
    longest = max(max(len(lane.label), len(lane.note)) for lane in lanes)
    wide = round(min(150, max(76, longest * _LETTER + 12)))
    return (
        '<figure class="timeline"><figcaption><h2>Timeline</h2><span>of the emulated clock; rounds are bands, numbered'
        " above</span></figcaption>"
        f'<div class="lanes" role="region" aria-label="{clean(said)}" tabindex="0">'
        f'<svg class="names" role="presentation" style="width:{wide}px;height:{height:.0f}px">'
        f"{_names(lanes, axes, bottom, wide)}</svg>"
        f'<svg class="times{"" if roomy else " dense"}" role="img" aria-label="{clean(said)}; a table below has'
        f' the happenings" style="height:{height:.0f}px;min-width:{WIDTH}px">'
        f"{_bands(record, scale, bottom)}{_axes(axes, scale, bottom)}{_plot(lanes, record.rounds, scale, bottom)}"
        f"{''.join(_signs(lane, scale) for lane in lanes)}</svg></div>"
        f"{_legend(record, roomy)}</figure>"
    )


def _names(lanes: Sequence[Lane], axes: Sequence[_Axis], bottom: float, wide: int) -> str:
    parts = []
    most = int((wide - 10) / _LETTER)
    for lane in lanes:
        if lane.label:
            y = lane.top + (15 if lane.device is None else 12)
            title = clean(f"{lane.label} {lane.note}".strip())
            parts.append(f'<text x="0" y="{y:.1f}"><title>{title}</title>{clean(_short(lane.label, most))}</text>')
        if lane.note:
            parts.append(f'<text class="quiet" x="0" y="{lane.top + 25:.1f}">{clean(_short(lane.note, most))}</text>')
    for i, (name, _, _) in enumerate(axes):
        parts.append(f'<text class="tick" x="0" y="{bottom + _AXIS * (i + 1) - 4:.1f}">{name}</text>')
    parts.append(f'<text class="tick" x="0" y="{TOP - 9}">round</text>')
    return "".join(parts)


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _bands(record: FleetRecord, scale: Scale, bottom: float) -> str:
    parts, numbers = list[str](), list[str]()
    before, labelled = 0.0, -math.inf
    every = max(1, round(nice_step(len(record.rounds), WIDTH // _ROUND)))
    most = 12 if len(record.rounds) <= _MANY_ROUNDS else 2
    for i, committed in enumerate(record.rounds):
        if not math.isfinite(committed.at_s):
            continue
        took = committed.round.seconds / factor(record)
        begin = max(before, committed.at_s - took if math.isfinite(took) else before)
        x, wide = scale.units(begin), max(1, scale.units(committed.at_s) - scale.units(begin))
        parts.append(
            f'<rect class="band{" odd" if i % 2 else ""}" x="{x}" y="0" width="{wide}" height="{bottom:.0f}">'
            f"<title>{clean(_round_text(committed, most))}</title></rect>"
        )
        middle = (begin + committed.at_s) / 2
        if committed.round.round % every == 0 and middle - labelled >= scale.seconds(_ROUND):
            labelled = middle
            numbers.append(
                f'<text class="tick" x="{scale.percent(middle)}" y="{TOP - 9}" text-anchor="middle">'
                f"{committed.round.round}</text>"
            )
        before = committed.at_s
    return _nested("".join(parts), bottom) + "".join(numbers)


def _round_text(committed: Committed, most: int) -> str:
    names = ", ".join(committed.devices[:most])
    more = f" and {len(committed.devices) - most} more" if len(committed.devices) > most else ""
    accuracy = committed.round.accuracy
    reached = f", accuracy {percent_text(accuracy)}" if accuracy is not None else ""
    who = f": {names}{more}" if names else ""
    return (
        f"Round {committed.round.round}: committed at {duration_text(committed.at_s)}{reached},"
        f" {committed.round.devices} folded{who}"
    )


def _plot(lanes: Sequence[Lane], rounds: Sequence[Committed], scale: Scale, bottom: float) -> str:
    """All bars of a kind are one path: a page of hundreds of lanes stays small."""
    paths: dict[str, list[str]] = {
        "off": [],
        "on": [],
        "cut": [],
        "folded": [],
        "lasting second": [],
        "lasting bad": [],
    }
    hovers = []
    folded: dict[str, list[Committed]] = {}
    for committed in rounds:
        for name in committed.devices if math.isfinite(committed.at_s) else ():
            folded.setdefault(name, []).append(committed)
    # Of thousands of rounds no more marks than can be told apart.
    fine = 1 if len(rounds) <= _MANY_ROUNDS else _COARSE
    for lane in lanes:
        if lane.device is None:
            continue
        middle = lane.bar + lane.tall / 2
        paths["off"].append(f"M0 {middle:g}h{UNITS}")
        for span in lane.device.presence:
            x, wide = scale.units(span.begin_s), scale.units(span.end_s) - scale.units(span.begin_s)
            tall = {"on": lane.tall, "cut": lane.tall / 2, "off": 0.0}[span.presence]
            if wide > 0 and tall:
                paths[span.presence].append(f"M{x} {middle - tall / 2:g}h{wide}v{tall:g}h-{wide}z")
        own = folded.get(lane.device.device, [])
        at = dict.fromkeys(scale.units(c.at_s) // fine * fine for c in own)
        paths["folded"] += [f"M{x} {lane.bar - 1:g}v{lane.tall + 2:g}" for x in at]
        if lane.signs is not None:
            for fault in lasting(lane.happenings, scale.end_s):
                line = f"M{scale.units(fault.begin_s)} {lane.bar - 3:g}H{scale.units(fault.end_s)}"
                paths[f"lasting {fault.kind.style}"].append(line)
        hovers.append(
            f'<rect class="hover" x="0" y="{lane.bar - 1:g}" width="{UNITS}" height="{lane.tall + 2:g}">'
            f"<title>{clean(_lane_text(lane.device, own))}</title></rect>"
        )
    if fine > 1:
        paths["folded many"] = paths.pop("folded")
    drawn = "".join(f'<path class="{name}" d="{"".join(path)}"/>' for name, path in paths.items() if path)
    thin = "".join(_ticks(lane, scale) for lane in lanes if lane.signs is None)
    return _nested(drawn + "".join(hovers) + thin, bottom)


def _lane_text(device: DeviceRecord, folded: Sequence[Committed]) -> str:
    there = ", ".join(
        f"{span.presence} {duration_text(span.begin_s)} to {duration_text(span.end_s)}" for span in device.presence[:6]
    )
    rounds = ", ".join(str(committed.round.round) for committed in folded[:20]) or "none"
    return f"{device.device} ({device.board}): {there or 'never there'}; folded in rounds: {rounds}"


def _ticks(lane: Lane, scale: Scale) -> str:
    """The marks of a thin lane: without letters, and without starts, which its bar shows."""
    return "".join(
        f'<path class="thin {mark.kind.style}" d="M{scale.units(mark.at_s)} {lane.bar - 1:g}v5">'
        f"<title>{clean(f'{lane.device.device if lane.device else lane.label}: {mark.text}')}</title></path>"
        for mark in marks((h for h in lane.happenings if kind_of(h).style != "good"), scale.seconds(2))
    )


def _signs(lane: Lane, scale: Scale) -> str:
    if lane.signs is None:
        return ""
    return "".join(_sign(mark, lane, scale) for mark in marks(lane.happenings, scale.seconds(_MARK)))


def _sign(mark: Mark, lane: Lane, scale: Scale) -> str:
    text = f"{lane.label}: {mark.text}"
    if lane.device is None:
        names = {h.device for h in mark.happenings if h.device}
        text = f"{', '.join(sorted(names)) or 'fleet'}: {mark.text}"
    return (
        f'<svg class="sign {mark.kind.style}" x="{scale.percent(mark.at_s)}" y="{lane.signs:g}">'
        f'<title>{clean(text)}</title><circle r="7.5"/><text y="3.8" text-anchor="middle">{mark.sign}</text></svg>'
    )


def _axes(axes: Sequence[_Axis], scale: Scale, bottom: float) -> str:
    parts = []
    for i, (_, entries, factor_) in enumerate(axes):
        y = bottom + _AXIS * (i + 1) - 4
        for at, text in entries:
            x = scale.percent(at / factor_)
            late = at / factor_ > 0.95 * scale.end_s
            anchor = "start" if at == 0 else "end" if late else "middle"
            parts.append(f'<text class="tick" x="{x}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>')
            if i == 0:
                parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom + 4:.1f}"/>')
    return "".join(parts)


def _nested(content: str, bottom: float) -> str:
    return (
        f'<svg class="plot" x="{EDGE}%" y="0" viewBox="0 0 {UNITS} {bottom:.0f}" preserveAspectRatio="none"'
        f' width="{100 - 2 * EDGE:g}%" height="{bottom:.0f}">{content}</svg>'
    )


def _legend(record: FleetRecord, roomy: bool) -> str:
    entries = ['<li class="on">there</li>', '<li class="cut">there, link cut</li>', '<li class="off">off</li>']
    if any(committed.devices for committed in record.rounds):
        entries.append('<li class="folded">its update folded</li>')
    seen = {word(happening)[0] for happening in record.happenings if not word(happening)[1]} - UNMARKED
    for name, kind in KINDS.items():
        if name in seen and (roomy or kind.style != "good"):
            entries.append(f'<li class="key {kind.style}"><b>{kind.letter if roomy else "|"}</b>{kind.title}</li>')
    if seen - set(KINDS):
        entries.append(f'<li class="key quiet"><b>{"?" if roomy else "|"}</b>other</li>')
    if roomy and seen:
        entries.append('<li class="key quiet"><b>2</b>so many, close together</li>')
    return f'<ul class="legend">{"".join(entries)}</ul>'
