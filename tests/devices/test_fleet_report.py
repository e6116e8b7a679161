"""The report of an emulated fleet: complete, self-contained, honest at the edges, and sound in a real browser."""

import itertools
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from devices import page
from devices.cli import main
from devices.engines.engine import InForce, Limits
from devices.fleet.record import Calibration, FleetRecord, Happening
from devices.fleet_report import read_record, render_fleet, write_record
from devices.fleet_report.axis import ticks
from devices.fleet_report.happenings import lasting, marks
from devices.fleet_report.limits import far_off, limit_text, not_in_force
from devices.fleet_report.outcome import concerns, outcome
from protocol.errors import ConfigurationError, SparsefleetError
from tests.devices import sample_fleets as samples
from tests.devices.browser import laid_out, screenshot

SVG = "{http://www.w3.org/2000/svg}"
ALL = [samples.small, samples.mixed, samples.crowd, samples.failed, samples.empty, samples.unknown, samples.hostile]
NAMED = [sample.__name__ for sample in ALL]


def _parse(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


@pytest.mark.parametrize("sample", ALL, ids=NAMED)
def test_the_page_is_well_formed_and_asks_for_nothing(sample: Callable[[], FleetRecord]) -> None:
    text = render_fleet(sample())
    root = _parse(text)
    assert not [one for one in root.iter() if one.tag.split("}")[-1] in ("script", "link", "img", "iframe", "use")]
    assert not {
        name for one in root.iter() for name in one.attrib if name.endswith(("href", "src")) or name[:2] == "on"
    }
    assert not re.search(r"url\(|@import", next(one for one in root.iter("style")).text or "")
    assert not re.search(r"\bnan\b|\binf\b|None", " ".join(root.itertext()) + str([one.attrib for one in root.iter()]))


@pytest.mark.parametrize("sample", [samples.small, samples.mixed, samples.crowd])
def test_every_device_round_and_happening_is_there(sample: Callable[[], FleetRecord]) -> None:
    record = sample()
    root = _parse(render_fleet(record))
    rows = {"".join(next(iter(row)).itertext()): " ".join(row.itertext()) for row in root.iter("tr")}
    assert {device.device for device in record.devices} <= rows.keys()
    assert {str(committed.round.round) for committed in record.rounds} <= rows.keys()
    tables = [one for one in root.iter("div") if one.get("aria-label") == "Happenings"]
    said = [tuple(cell.text for cell in row)[1:3] for table in tables for row in table.iter("tr")]
    wanted = [(h.device, h.what) for h in record.happenings]
    assert sorted(said) == sorted([*wanted, ("Device", "What")] if wanted else [])


def test_hundreds_of_devices_are_a_small_page_with_boards_first() -> None:
    record = samples.crowd()
    text = render_fleet(record)
    assert len(text.encode()) < 2_000_000
    assert text.index("By board") < text.index("Each of 220 devices as it was")
    before = _parse(text.split("<details>")[0] + "</main></body></html>")
    assert len(list(before.iter("tr"))) == 1 + len({d.board for d in record.devices})


def test_a_thousand_rounds_are_a_page_too() -> None:
    text = render_fleet(samples.fleet(220, rounds=1_000, seed=5, clock=1.0, faults=("kill",) * 2_000))
    assert len(text.encode()) < 4_000_000
    assert "Round 1000: committed at" in text


def test_what_is_not_in_force_and_what_is_far_off_stand_out() -> None:
    root = _parse(render_fleet(samples.mixed()))
    alarms = [one.text for one in root.iter("em")]
    assert alarms == ["none (512 MiB asked)", "+22.5 %", "1"]
    text = " ".join(root.itertext())
    assert "the memory controller is not mounted here" in text
    assert "An emulated second lasted 2.5 real ones" in text


@pytest.mark.parametrize(
    ("asked", "held", "why", "expected"),
    [
        (Limits(0.25, 512), Limits(0.25, 512), {}, []),
        (Limits(0.25, 512), Limits(0.2501, 512), {}, []),
        (Limits(0.25, 512), Limits(0.5, 512), {}, ["cores"]),
        (Limits(0.25, 512), Limits(0.25, None), {"memory_mib": "no controller"}, ["memory"]),
        (Limits(), Limits(), {"network": "open"}, ["network"]),
        (Limits(math.nan), Limits(0.5), {}, ["cores"]),
    ],
)
def test_a_limit_holds_when_it_is_read_back_as_asked(
    asked: Limits, held: Limits, why: dict[str, str], expected: list[str]
) -> None:
    device = replace(samples.small().devices[0], asked=asked, in_force=InForce(held, why))
    assert [one.limit for one in not_in_force(device)] == expected


def test_one_figure_is_shown_where_what_holds_is_what_was_asked() -> None:
    asked, held = Limits(0.0443, 512), Limits(0.044, None)
    assert limit_text(asked, held, "cores") == "0.044"
    assert limit_text(asked, held, "memory_mib") == "none (512 MiB asked)"
    assert limit_text(asked, Limits(0.5), "cores") == "0.5 (0.0443 asked)"
    assert limit_text(asked, held, "disk_mib") == "-"


@pytest.mark.parametrize(("measured", "off"), [(115.0, False), (115.1, True), (84.9, True), (math.nan, False)])
def test_a_step_is_far_off_beyond_fifteen_percent_either_way(measured: float, off: bool) -> None:
    device = replace(samples.small().devices[0], calibration=Calibration(1.0, measured, 100.0))
    assert far_off(device) is off


def test_the_sentence_says_what_became_of_the_run() -> None:
    good, sentence = outcome(samples.small())
    assert good == "reached"
    assert sentence.startswith("All rounds are done: 4 rounds in 4 min 14 s, with updates of 3 of 3 devices, accuracy ")
    bad, sentence = outcome(samples.failed())
    assert bad == "not-reached"
    assert "no round was committed: the coordinator ended with 3: port 8883 is taken." in sentence
    bad, sentence = outcome(replace(samples.small(), outcome="interrupted"))
    assert (bad, sentence[:26]) == ("not-reached", "Ended early: interrupted; ")
    assert outcome(replace(samples.small(), rounds=()))[0] == "not-reached"
    assert concerns(samples.failed()) == ["4 devices never enrolled"]
    assert concerns(samples.small()) == []
    asks = replace(samples.failed(), outcome="light-1 was refused; is it there?")
    assert outcome(asks)[1].endswith("is it there?")
    assert [text[:30] for text in concerns(samples.mixed())] == [
        "1 device ran with a limit that",
        "1 device took over 15 % longer",
        "1 device ran out of memory, an",
    ]


def test_devices_without_limits_are_said_once_and_nothing_is_drawn_of_no_time() -> None:
    record = samples.small()
    bare = [replace(d, asked=Limits(), in_force=InForce(Limits()), calibration=None) for d in record.devices]
    assert [text[:30] for text in concerns(replace(record, devices=tuple(bare)))] == ["3 devices ran without any limi"]
    there = tuple(replace(d, presence=()) for d in bare)
    nothing = replace(record, devices=there, rounds=(), happenings=())
    assert "Timeline" not in render_fleet(nothing)
    assert "Timeline" in render_fleet(record)


def test_marks_that_would_lie_on_each_other_are_one_and_ends_are_lines() -> None:
    told = [Happening(at, "a", what) for at, what in ((1, "start"), (5, "cut"), (6, "kill"), (9, "restore"))]
    assert [(mark.at_s, mark.sign) for mark in marks(told, 2.0)] == [(1, "S"), (5, "2")]
    assert [mark.sign for mark in marks(told, 0.5)] == ["S", "C", "K"]
    assert marks(told, 2.0)[1].kind.title == "agent killed"
    assert [(one.begin_s, one.end_s) for one in lasting(told, 20.0)] == [(5, 9)]
    assert [(one.begin_s, one.end_s) for one in lasting(told[:3], 20.0)] == [(5, 20)]


@pytest.mark.parametrize("end_s", [1e-3, 0.4, 7.0, 59, 61, 300, 5_000, 90_000, 864_000, 4e10])
def test_the_ticks_of_time_are_few_and_within_it(end_s: float) -> None:
    found = ticks(end_s, 6)
    assert 3 <= len(found) <= 7
    assert found[-1][0] <= end_s * (1 + 1e-9)
    assert len({text for _, text in found}) == len(found)


@pytest.mark.parametrize("sample", ALL, ids=NAMED)
def test_a_record_comes_back_from_its_file(sample: Callable[[], FleetRecord], tmp_path: Path) -> None:
    record = sample()
    write_record(tmp_path / "record.json", record)
    again = read_record(tmp_path)
    assert json.loads((tmp_path / "record.json").read_text())["version"] == 1
    if sample is samples.unknown:
        # What is no number is nothing where there may be nothing, and stays so.
        assert math.isnan(again.seconds)
        assert again.devices[0].step_ms is None
        write_record(tmp_path / "record.json", again)
        record, again = again, read_record(tmp_path)
    assert again == record or repr(again) == repr(record)
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "not the record"),
        ("[]", "table of keys"),
        ("{}", "version: None"),
        ('{"version": 2}', "version: 2"),
        ('{"version": 1}', "fleet: missing"),
        ("[" * 100_000, "not the record"),
        ('{"version": 1, "devices": [{"memory": [3]}]}', "not the record"),
    ],
)
def test_a_file_that_is_no_record_is_named_with_the_key(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=re.escape(str(path))) as caught:
        read_record(path)
    assert named in str(caught.value)


def test_a_record_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(SparsefleetError, match="cannot be written"):
        write_record(tmp_path / "gone" / "record.json", samples.small())
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_record(tmp_path / "gone")


def test_the_command_says_the_facts_and_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "record.json", samples.mixed())
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "All rounds are done" in said
    assert "slow-board-01" in said
    assert (tmp_path / "report.html").read_text() == render_fleet(samples.mixed())
    out = tmp_path / "other.html"
    assert main(["report", str(tmp_path / "record.json"), "--out", str(out), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["rounds"], len(facts["devices"]), facts["report"]) == (5, 8, str(out))
    assert facts["devices"][0]["not_in_force"] == {"memory": "the memory controller is not mounted here"}
    assert main(["report", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert main(["report", str(tmp_path / "none")]) == 3


def test_hundreds_of_devices_are_a_row_a_board_on_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(tmp_path / "record.json", samples.crowd())
    assert len((tmp_path / "record.json").read_text().splitlines()) < 220 + 30 + 250 + 40
    assert main(["report", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 1 + 4 + 1 + 1
    assert said[1].split()[:2] == ["slow-board", "55"]


@pytest.mark.parametrize("sample", [samples.unknown, samples.hostile, samples.empty])
def test_the_command_survives_any_record_and_sends_no_terminal_codes(
    sample: Callable[[], FleetRecord], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = replace(sample(), outcome="\x1b]0;evil\x07[red]")
    write_record(tmp_path / "record.json", record)
    assert main(["report", str(tmp_path)]) == 0
    assert "\x1b" not in (said := capsys.readouterr().out)
    assert "[red]" in said
    assert main(["report", str(tmp_path), "--json"]) == 0
    json.loads(capsys.readouterr().out)


def test_the_command_takes_the_latest_record_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report"]) == 3
    (tmp_path / "fleet-a").mkdir()
    write_record(tmp_path / "fleet-a" / "record.json", samples.small())
    assert main(["report"]) == 0
    assert (tmp_path / "fleet-a" / "report.html").is_file()
    assert "fleet-a" in capsys.readouterr().out


@pytest.mark.parametrize("width", [400, 1280])
def test_no_label_lies_on_another_and_nothing_is_wider_than_the_window(width: int, tmp_path: Path) -> None:
    pages = {sample.__name__: render_fleet(sample()) for sample in ALL}
    for name, found in laid_out(pages, tmp_path, width).items():
        assert found.asked == 0
        assert found.width <= width, name
        for boxes in (found.texts, found.signs):
            over = [(name, a.text, b.text) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
            assert over == []
        assert found.texts or name == "empty"


def test_a_browser_draws_the_page_in_light_and_in_dark(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(render_fleet(samples.mixed()), encoding="utf-8")
    light = screenshot(path, tmp_path / "light.png", 1280, 900)
    dark = screenshot(path, tmp_path / "dark.png", 400, 900, "--blink-settings=preferredColorScheme=0")
    assert light.shape == (900, 1280, 3)
    assert dark.shape == (900, 400, 3)
    assert light.mean() > 200 > 60 > dark.mean()
    # Bars of presence are most of what is blue.
    blue = (light[..., 2].astype(int) - light[..., 0]) > 80
    assert blue.sum() > 5_000


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_what_is_behind_it(dark: bool) -> None:
    style = (Path(page.__file__).with_name("report.css")).read_text(encoding="utf-8")
    palettes = [dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", part)) for part in style.split(":root {")[1:3]]
    palette = palettes[dark]
    for behind in ("page", "card"):
        for text in ("ink", "quiet", "good", "bad"):
            assert _contrast(palette[text], palette[behind]) >= 4.5, (text, behind)
    # Letters of signs, and what is drawn.
    for drawn in ("bad", "good", "second", "quiet", "first"):
        assert _contrast(palette["card"], palette[drawn]) >= (3.0 if drawn == "first" else 4.5), drawn


def _contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2, 1.4.3."""
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
