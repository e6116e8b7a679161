"""The report of a run as one HTML file that needs nothing else: figures, charts, and tables of devices and rounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from devices.charts import Chart, Series, bar_chart, line_chart, nice_step, nice_top
from devices.facts import DeviceFacts, Evaluation, RoundCommitted
from devices.text import MISSING, bytes_text, bytes_tick, decimal_text, duration_text, number_text, percent_text

_ENDS = {"target-accuracy": "until the target", "rounds": "the most allowed", "steps": "all steps of the budget"}
_STYLE = Path(__file__).with_name("report.css")


@dataclass(frozen=True, slots=True)
class Report:
    """The facts of one run.

    `dense_update_bytes` is what one update would weigh as dense float32 values; `evaluation` is of the exported model.
    """

    fleet: str
    data: str
    model: str
    parameters: int
    codec: str
    downlink: str
    broker: str
    started: str
    seconds: float
    reason: str
    target_accuracy: float
    rounds: tuple[RoundCommitted, ...]
    devices: tuple[DeviceFacts, ...]
    evaluation: Evaluation | None = None
    dense_update_bytes: int | None = None

    @property
    def accuracy(self) -> float | None:
        """Of the exported model where it was evaluated, else of the last round."""
        if self.evaluation is not None:
            return self.evaluation.accuracy
        return self.rounds[-1].accuracy if self.rounds else None

    @property
    def reached(self) -> bool:
        return self.accuracy is not None and self.accuracy >= self.target_accuracy

    @property
    def bytes_up(self) -> int:
        return sum(r.bytes_up for r in self.rounds)

    @property
    def bytes_down(self) -> int:
        return sum(r.bytes_down for r in self.rounds)


def render_report(report: Report) -> str:
    """The HTML text, also well-formed XML."""
    style = _STYLE.read_text(encoding="utf-8")
    verdict = "reached" if report.reached else "not reached"
    body = [
        _header(report, verdict),
        _figures(report),
        '<section class="charts">',
        _card("Accuracy", "on examples no device has seen", _accuracy_chart(report), _accuracy_legend(report)),
        _card("Traffic", "all devices together, added up over rounds", _bytes_chart(report), _bytes_legend(report)),
        _card(
            "Time",
            "seconds a round",
            _seconds_chart(report),
            _legend(("first block", "work"), ("second block", "overhead")),
        ),
        "</section>",
        _devices_table(report),
        _rounds_table(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{escape(report.fleet)}: {escape(report.data)}, {percent_text(report.accuracy)}</title>"
        f"<style>{style}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _header(report: Report, verdict: str) -> str:
    return (
        f"<header><h1>Fleet {escape(report.fleet)} on {escape(report.data)}</h1>"
        f'<p class="verdict {verdict.replace(" ", "-")}">Target of {percent_text(report.target_accuracy)} {verdict}</p>'
        f"<p>{escape(report.model)}, {number_text(report.parameters)} parameters, updates by {escape(report.codec)},"
        f" models by {escape(report.downlink)},"
        f" broker {escape(report.broker)}, started {escape(report.started)}</p></header>"
    )


def _figures(report: Report) -> str:
    updates = sum(r.devices for r in report.rounds)
    examples = f"on {number_text(report.evaluation.examples)} held-out examples" if report.evaluation else "last round"
    figures = [
        ("Accuracy", percent_text(report.accuracy), examples),
        (
            "Rounds",
            str(len(report.rounds)),
            f"in {duration_text(report.seconds)}, {_ENDS.get(report.reason, report.reason)}",
        ),
        ("Devices", str(len(report.devices)), f"{number_text(sum(d.examples or 0 for d in report.devices))} examples"),
        ("Sent up", bytes_text(report.bytes_up), _saving(report, updates)),
        (
            "Sent down",
            bytes_text(report.bytes_down),
            f"{bytes_text(report.bytes_down / max(1, updates))} a device and round",
        ),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd><strong>{escape(value)}</strong><span>{escape(note)}</span></dd></div>"
        for name, value, note in figures
    )
    return f'<dl class="figures">{items}</dl>'


def _saving(report: Report, updates: int) -> str:
    text = f"{bytes_text(report.bytes_up / max(1, updates))} a device and round"
    if report.dense_update_bytes and report.bytes_up:
        text += f", {report.dense_update_bytes * updates / report.bytes_up:.1f}x less than float32"
    return text


def _accuracy_chart(report: Report) -> str:
    values = tuple(r.accuracy for r in report.rounds)
    known = [v for v in values if v is not None] + [report.target_accuracy]
    low = max(0.0, int(min(known) * 10) / 10)
    target = Series("target", (report.target_accuracy,) * len(values), "reference")
    return line_chart(
        Chart(
            name="Accuracy over rounds",
            description=f"Ends at {percent_text(report.accuracy)}, target {percent_text(report.target_accuracy)}",
            rounds=_numbers(report),
            series=(target, Series("accuracy", values, "first")),
            hover=tuple(
                f"Round {r.round}: {percent_text(r.accuracy)}" + (f", loss {r.loss:.3f}" if r.loss is not None else "")
                for r in report.rounds
            ),
            tick=lambda v: f"{v * 100:g} %" if abs(v * 100 - round(v * 100)) < 1e-6 else f"{v * 100:.1f} %",
            low=low,
            high=1.0,
        )
    )


def _bytes_chart(report: Report) -> str:
    up = _cumulated([r.bytes_up for r in report.rounds])
    down = _cumulated([r.bytes_down for r in report.rounds])
    series = [Series("up", tuple(up), "first"), Series("down", tuple(down), "second")]
    if report.dense_update_bytes:
        dense = _cumulated([report.dense_update_bytes * r.devices for r in report.rounds])
        series.insert(0, Series("up as dense float32", tuple(dense), "reference"))
    top = nice_top([v for s in series for v in s.values if v is not None])
    return line_chart(
        Chart(
            name="Bytes over rounds, cumulated",
            description=f"{bytes_text(report.bytes_up)} up and {bytes_text(report.bytes_down)} down in all",
            rounds=_numbers(report),
            series=tuple(series),
            hover=tuple(
                f"After round {r.round}: " + ", ".join(f"{bytes_text(s.values[i])} {s.label}" for s in reversed(series))
                for i, r in enumerate(report.rounds)
            ),
            tick=bytes_tick,
            low=0.0,
            high=top,
        )
    )


def _seconds_chart(report: Report) -> str:
    overhead = tuple(min(r.overhead_s or 0.0, r.seconds) for r in report.rounds)
    work = tuple(r.seconds - over for r, over in zip(report.rounds, overhead, strict=True))
    top = nice_top([r.seconds for r in report.rounds])
    digits = 0 if nice_step(top) >= 1 else 1 if nice_step(top) >= 0.1 else 2
    return bar_chart(
        Chart(
            name="Seconds a round",
            description=f"{sum(r.seconds for r in report.rounds) / max(1, len(report.rounds)):.2f} s on average",
            rounds=_numbers(report),
            series=(Series("work", work, "first"), Series("overhead", overhead, "second")),
            hover=tuple(
                f"Round {r.round}: {r.seconds:.2f} s"
                + ("" if r.overhead_s is None else f", overhead {r.overhead_s:.2f} s")
                for r in report.rounds
            ),
            tick=lambda v: f"{v:.{digits}f} s",
            low=0.0,
            high=top,
        )
    )


def _accuracy_legend(report: Report) -> str:
    return _legend(("first", "accuracy"), ("reference", f"target {percent_text(report.target_accuracy)}"))


def _bytes_legend(report: Report) -> str:
    entries = [("first", "up"), ("second", "down")]
    if report.dense_update_bytes:
        entries.append(("reference", "up, were it dense float32"))
    return _legend(*entries)


def _legend(*entries: tuple[str, str]) -> str:
    return "".join(f'<li class="{style}">{escape(text)}</li>' for style, text in entries)


def _card(title: str, note: str, chart: str, legend: str) -> str:
    caption = f"<figcaption><h2>{title}</h2><span>{note}</span></figcaption>"
    return f'<figure>{caption}{chart}<ul class="legend">{legend}</ul></figure>'


def _devices_table(report: Report) -> str:
    head = (
        "Device",
        "Examples",
        "Rounds",
        "Updates accepted",
        "Rejected",
        "Sent up",
        "Sent down",
        "Last loss",
        "Step",
        "Backend",
    )
    rows = [
        (
            d.device,
            number_text(d.examples),
            number_text(d.rounds),
            number_text(d.accepted),
            number_text(d.rejected),
            bytes_text(d.bytes_up),
            bytes_text(d.bytes_down),
            decimal_text(d.last_loss, 3),
            decimal_text(d.step_ms, 2, " ms"),
            d.backend or MISSING,
        )
        for d in report.devices
    ]
    return f"<section><h2>Devices</h2>{_table('Devices', head, rows)}</section>"


def _rounds_table(report: Report) -> str:
    head = ("Round", "Accuracy", "Loss", "Devices", "Sent up", "Sent down", "Seconds", "Overhead")
    rows = [
        (
            str(r.round),
            percent_text(r.accuracy),
            decimal_text(r.loss, 3),
            str(r.devices),
            bytes_text(r.bytes_up),
            bytes_text(r.bytes_down),
            f"{r.seconds:.2f} s",
            decimal_text(r.overhead_s, 2, " s"),
        )
        for r in report.rounds
    ]
    return f"<details><summary><h2>Rounds</h2></summary>{_table('Rounds', head, rows)}</details>"


def _table(name: str, head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    assert all(len(row) == len(head) for row in rows)
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    # A table wider than a phone scrolls inside its own frame, and the keyboard can reach it.
    return (
        f'<div class="table" role="region" aria-label="{name}" tabindex="0">'
        f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _numbers(report: Report) -> tuple[int, ...]:
    return tuple(r.round for r in report.rounds)


def _cumulated(values: list[int]) -> list[float]:
    total, result = 0.0, []
    for value in values:
        total += value
        result.append(total)
    return result
