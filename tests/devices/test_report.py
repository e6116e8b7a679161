"""The report: well-formed, self-contained, complete, and honest at the edges."""

import dataclasses
import re
from xml.etree import ElementTree

import pytest

from devices.charts import Chart, Series, bar_chart, line_chart, nice_step, nice_top
from devices.facts import DeviceFacts, Evaluation, RoundCommitted
from devices.report import Report, render_report
from devices.text import bytes_text, bytes_tick, duration_text, percent_text

ROUNDS = tuple(
    RoundCommitted(i, 3, 1.5, 60_000, 120_000, i, 1 - 0.5**i, 2.0 * 0.5**i, overhead_s=0.1) for i in range(1, 8)
)
DEVICES = tuple(DeviceFacts(f"device-{i:02d}", 100 + i, "ort-training", 7, 7, 0, 140_000, 280_000) for i in range(1, 4))
REPORT = Report(
    fleet="demo",
    data="digits",
    model="digits-cnn 1",
    parameters=10_026,
    codec="all/float16",
    downlink="topk:0.1/int8",
    broker="mosquitto 2.0.11 (private)",
    started="2026-01-02 03:04",
    seconds=21.0,
    reason="target-accuracy",
    target_accuracy=0.95,
    rounds=ROUNDS,
    devices=DEVICES,
    evaluation=Evaluation(359, 0.957),
    dense_update_bytes=40_104,
)


def _parse(report: Report) -> ElementTree.Element:
    return ElementTree.fromstring(render_report(report).removeprefix("<!DOCTYPE html>"))


def test_the_report_is_well_formed_and_names_every_device_and_round() -> None:
    text = " ".join(_parse(REPORT).itertext())
    for device in DEVICES:
        assert device.device in text
    assert "95.7 %" in text
    for row in ROUNDS:
        assert f"Round {row.round}:" in text


def test_the_report_loads_nothing_from_anywhere() -> None:
    text = render_report(REPORT).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"\w+://|url\(|@import|<script|<link|<img|src=|href=", text)


def test_every_round_can_be_hovered_in_every_chart() -> None:
    titles = list(_parse(REPORT).iter("{http://www.w3.org/2000/svg}title"))
    assert len(titles) == 3 * len(ROUNDS)


def test_names_with_markup_in_them_stay_text() -> None:
    hostile = dataclasses.replace(REPORT, model='<b a="1">&', devices=(DeviceFacts("<script>"),))
    text = " ".join(_parse(hostile).itertext())
    assert '<b a="1">&' in text
    assert "<script>" in text


@pytest.mark.parametrize(
    "report",
    [
        dataclasses.replace(REPORT, rounds=(), devices=(), evaluation=None, dense_update_bytes=None),
        dataclasses.replace(REPORT, rounds=ROUNDS[:1]),
        dataclasses.replace(
            REPORT, rounds=(dataclasses.replace(ROUNDS[0], accuracy=None, loss=None, overhead_s=None),)
        ),
        dataclasses.replace(REPORT, rounds=(dataclasses.replace(ROUNDS[0], bytes_up=0, bytes_down=0, seconds=0.0),)),
    ],
    ids=["no rounds", "one round", "nothing evaluated", "all zero"],
)
def test_a_run_with_little_to_show_still_has_a_report(report: Report) -> None:
    _parse(report)


def test_the_verdict_follows_the_accuracy_of_the_exported_model() -> None:
    assert "Target of 95.0 % reached" in render_report(REPORT)
    missed = dataclasses.replace(REPORT, evaluation=Evaluation(359, 0.9499))
    assert "Target of 95.0 % not reached" in render_report(missed)
    assert "94.9 %" in render_report(missed)


def test_a_higher_value_is_drawn_higher_and_a_gap_breaks_the_line() -> None:
    values = (0.0, 1.0, None, 0.5, 0.5)
    chart = Chart("c", "d", (1, 2, 3, 4, 5), (Series("s", values, "first"),), ("",) * 5, str, 0.0, 1.0)
    svg = ElementTree.fromstring(line_chart(chart))
    heights = [float(dot.attrib["cy"]) for dot in svg.iter("{http://www.w3.org/2000/svg}circle")]
    assert heights[0] > heights[2] > heights[1]
    assert len(list(svg.iter("{http://www.w3.org/2000/svg}polyline"))) == 2


def test_bars_stack_to_the_sum() -> None:
    series = (Series("a", (1.0,), "first"), Series("b", (1.0,), "second"))
    svg = ElementTree.fromstring(bar_chart(Chart("c", "d", (1,), series, ("",), str, 0.0, 2.0)))
    bars = [r for r in svg.iter("{http://www.w3.org/2000/svg}rect") if "bar" in r.attrib["class"]]
    bottom, top = bars
    assert float(top.attrib["y"]) + float(top.attrib["height"]) == pytest.approx(float(bottom.attrib["y"]), abs=0.11)


@pytest.mark.parametrize("span", [1e-9, 0.03, 0.5, 1, 7, 99, 1e6, 12_345_678])
def test_axis_steps_are_round_and_few(span: float) -> None:
    step = nice_step(span)
    assert 1.9 <= span / step <= 5.001
    assert f"{step:.0e}"[0] in "125"
    assert span <= nice_top([span]) <= span + step


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"),
        (bytes_text(999), "999 B"),
        (bytes_text(999.7), "1.00 kB"),
        (bytes_text(1_400_000), "1.40 MB"),
        (bytes_text(54_321), "54.3 kB"),
        (bytes_tick(1_400_000), "1.4 MB"),
        (bytes_text(5e15), "5000 TB"),
        (duration_text(59.99), "1 min 00 s"),
        (duration_text(3720), "1 h 02 min"),
        (percent_text(0.9996), "99.9 %"),
        (percent_text(0.95), "95.0 %"),
        (percent_text(None), "-"),
    ],
)
def test_quantities_read_well(text: str, expected: str) -> None:
    assert text == expected
