"""The report of an emulated fleet as one HTML file that needs nothing else."""

import dataclasses
import math

from devices.facts import RoundCommitted
from devices.fleet.record import FleetRecord
from devices.fleet_report.courses import accuracy_chart
from devices.fleet_report.device_tables import device_tables
from devices.fleet_report.outcome import clock_section, header, outcome, run_figures
from devices.fleet_report.run_tables import happenings_table, rounds_table
from devices.fleet_report.timeline import timeline
from devices.page import card, document, legend
from devices.round_charts import seconds_card, traffic_card


def render_fleet(record: FleetRecord) -> str:
    """The HTML text, also well-formed XML."""
    parts = [
        header(record),
        run_figures(record),
        timeline(record),
        _charts(record),
        clock_section(record),
        device_tables(record) if record.devices else "",
        rounds_table(record),
        happenings_table(record),
    ]
    return document(f"{record.fleet}: {outcome(record)[1]}", parts, wide=True)


def _charts(record: FleetRecord) -> str:
    if not record.rounds:
        return ""
    rounds = tuple(_drawable(committed.round) for committed in record.rounds)
    accuracy = card(
        "Accuracy", "over time, on examples no device has seen", accuracy_chart(record), legend(("first", "accuracy"))
    )
    time = seconds_card(rounds, "real seconds a round")
    return f'<section class="charts">{accuracy}{traffic_card(rounds)}{time}</section>'


def _drawable(committed: RoundCommitted) -> RoundCommitted:
    seconds = committed.seconds if math.isfinite(committed.seconds) else 0.0
    overhead = committed.overhead_s
    return dataclasses.replace(
        committed, seconds=seconds, overhead_s=overhead if overhead is not None and math.isfinite(overhead) else None
    )
