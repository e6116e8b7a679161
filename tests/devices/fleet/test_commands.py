"""fleet-emulate boards and validate, as people and programs call them."""

import json
from pathlib import Path

import pytest

from devices.cli import main
from devices.fleet.catalogue import catalogue_names

_EXAMPLES = Path(__file__).parents[3] / "examples"


def test_boards_lists_every_board_and_says_that_steps_are_derived(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boards"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in catalogue_names())
    assert "derived, not measured" in printed


def test_one_board_is_shown_with_the_source_of_each_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boards", "raspberry-pi-4"]) == 0
    printed = capsys.readouterr().out
    assert "from: derived: step_ms = " in printed
    assert "from: https://www.pidramble.com" in printed
    assert main(["boards", "raspberry-pi-4", "--json"]) == 0
    board = json.loads(capsys.readouterr().out)
    assert (board["name"], board["memory_mib"], board["power"]["idle_w"]) == ("raspberry-pi-4", 4096, 2.7)
    assert main(["boards", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(catalogue_names())


def test_an_unknown_board_ends_with_3_and_names_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["boards", "raspberry-pi-6"]) == 3
    assert "did you mean raspberry-pi-" in capsys.readouterr().err


def test_validate_says_what_would_be_started(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(_EXAMPLES / "mixed-fleet.toml")]) == 0
    printed = capsys.readouterr().out
    assert "mixed: 8 devices, 5 rounds of digits, 6 faults" in printed
    assert "pi4-1 to pi4-3" in printed
    assert "clock: one emulated second lasts" in printed
    assert main(["validate", str(_EXAMPLES / "scale-fleet.toml"), "--json", "--step-ms", "2"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (len(facts["devices"]), facts["rounds"], facts["devices"][-1]["light"]) == (220, 3, True)
    assert facts["notes"]


def test_validate_refuses_what_cannot_be_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (_EXAMPLES / "mixed-fleet.toml").read_text()
    (tmp_path / "fast.toml").write_text(text.replace('clock = "auto"', "clock = 0.01"))
    assert main(["validate", str(tmp_path / "fast.toml")]) == 3
    assert "fewer than this machine needs" in capsys.readouterr().err
    assert main(["validate", str(_EXAMPLES / "mixed-fleet.toml"), "--step-ms", "0"]) == 3
    assert "--step-ms: 0.0 is outside" in capsys.readouterr().err
