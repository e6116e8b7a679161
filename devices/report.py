"""The report of a run as one HTML file that needs nothing else: figures, charts, and tables of devices and rounds."""

from dataclasses import dataclass

from devices.charts import Chart, Series, line_chart
from devices.facts import DeviceFacts, Evaluation, RoundCommitted
from devices.page import card, clean, document, figures, folded, legend, table
from devices.round_charts import seconds_card, traffic_card
from devices.text import MISSING, bytes_text, decimal_text, duration_text, number_text, percent_text

_ENDS = {"target-accuracy": "until the target", "rounds": "the most allowed", "steps": "all steps of the budget"}


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
    verdict = "reached" if report.reached else "not reached"
    body = [
        _header(report, verdict),
        _figures(report),
        '<section class="charts">',
        card("Accuracy", "on examples no device has seen", _accuracy_chart(report), _accuracy_legend(report)),
        traffic_card(report.rounds, report.dense_update_bytes),
        seconds_card(report.rounds),
        "</section>",
        _devices_table(report),
        _rounds_table(report),
    ]
    return document(f"{report.fleet}: {report.data}, {percent_text(report.accuracy)}", body)


def _header(report: Report, verdict: str) -> str:
    return (
        f"<header><h1>Fleet {clean(report.fleet)} on {clean(report.data)}</h1>"
        f'<p class="verdict {verdict.replace(" ", "-")}">Target of {percent_text(report.target_accuracy)} {verdict}</p>'
        f"<p>{clean(report.model)}, {number_text(report.parameters)} parameters, updates by {clean(report.codec)},"
        f" models by {clean(report.downlink)},"
        f" broker {clean(report.broker)}, started {clean(report.started)}</p></header>"
    )


def _figures(report: Report) -> str:
    updates = sum(r.devices for r in report.rounds)
    examples = f"on {number_text(report.evaluation.examples)} held-out examples" if report.evaluation else "last round"
    entries = [
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
    return figures(entries)


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


def _accuracy_legend(report: Report) -> str:
    return legend(("first", "accuracy"), ("reference", f"target {percent_text(report.target_accuracy)}"))


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
    return f"<section><h2>Devices</h2>{table('Devices', head, rows)}</section>"


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
    return folded("Rounds", table("Rounds", head, rows))


def _numbers(report: Report) -> tuple[int, ...]:
    return tuple(r.round for r in report.rounds)
