"""The judge of a fleet in containers finds what is wrong with a record, and accepts one that is right."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from devices.conductor import folder
from devices.engines.engine import InForce
from devices.fleet.fleet_file import load_fleet
from devices.fleet.record import FleetRecord, Happening
from protocol.errors import SparsefleetError
from tests.devices.sample_fleets import fleet
from tests.emulated_fleet import EXAMPLE, events, figures, left_behind, problems

PLAN = load_fleet(EXAMPLE)
SAID = (
    {"event": "stage", "stage": "images", "seconds": 500.0},
    {"event": "ended", "outcome": "rounds", "rounds": PLAN.rounds},
)


def good() -> FleetRecord:
    record = fleet(len(PLAN.devices), rounds=PLAN.rounds, seed=1, clock=2.0, faults=())
    devices = tuple(
        replace(
            found,
            device=device.name,
            architecture="amd64" if device.native else "arm64",
            in_force=InForce(found.asked),
            enrolled_s=1.0,
        )
        for device, found in zip(PLAN.devices, record.devices, strict=True)
    )
    happened = tuple(Happening(fault.at_s, name, fault.do) for fault in PLAN.faults for name in fault.devices)
    return replace(record, devices=devices, happenings=happened, seconds=1000.0, outcome="rounds")


def test_a_record_that_is_right_has_no_problem_and_its_figures_are_printed() -> None:
    assert problems(PLAN, SAID, good()) == []
    assert any("500 s in all without images" in line for line in figures(SAID, good()))


def test_each_thing_that_is_wrong_is_found() -> None:
    record = good()
    first, *rest = record.devices
    changed = {
        "ended by 'no round'": replace(record, outcome="no round"),
        "4 of 5 rounds": replace(record, rounds=record.rounds[:-1]),
        "it took 700 s": replace(record, seconds=1200.0),
        "devices are of amd64": replace(
            record, devices=tuple(replace(d, architecture="amd64") for d in record.devices)
        ),
        "not evaluated": replace(
            record,
            rounds=(
                *record.rounds[:-1],
                replace(record.rounds[-1], round=replace(record.rounds[-1].round, accuracy=math.nan)),
            ),
        ),
        "zero-arm64 is not in the record": replace(record, devices=tuple(rest)),
        "memory is not in force": replace(
            record, devices=(replace(first, in_force=InForce(replace(first.asked, memory_mib=None))), *rest)
        ),
        "was not calibrated": replace(record, devices=(replace(first, calibration=None), *rest)),
        "never enrolled": replace(record, devices=(replace(first, enrolled_s=None), *rest)),
        "the disk-full at 32 s did not happen": replace(record, happenings=record.happenings[:-1]),
        "its engine failed": replace(record, happenings=(*record.happenings, Happening(1.0, "pi5-1", "engine", "no"))),
    }
    for text, wrong in changed.items():
        assert any(text in problem for problem in problems(PLAN, SAID, wrong)), text


def test_what_is_no_event_on_standard_output_is_refused() -> None:
    lines = [json.dumps(event).encode() for event in SAID]
    assert list(events(b"\n".join(lines))) == list(SAID)
    for printed in (b"", lines[0], b"hello\n" + lines[1], b"[1]\n" + lines[1]):
        with pytest.raises(SparsefleetError, match="--json"):
            events(printed)


def test_what_a_fleet_left_behind_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    name = "none-of-that-name"
    assert left_behind(name, tmp_path / "out") == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / folder.SOCKET).touch()
    with folder.entered(folder.Entry(name, str(tmp_path / "out"), "podman")):
        found = left_behind(name, tmp_path / "out")
    assert [Path(text.split()[0]).name for text in found] == [folder.SOCKET, f"{name}.json"]
