"""`fleet-emulate up` that comes to nothing: what is refused late leaves nothing, and signals end it whole."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.cli import _parser
from devices.conductor import endings, folder
from devices.conductor.folder import Entry
from protocol.command import run_command
from tests.conductor.plans import plan_of


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def call(capture: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[dict[str, object]], str]:
    """Exit code, the events, and what people read."""
    code = run_command(_parser(), ["up", *words])
    said = capture.readouterr()
    return code, [json.loads(line) for line in said.out.splitlines()], said.err


def test_a_folder_with_files_of_others_is_refused_left_alone_and_the_name_is_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_of(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all of it")
    words = (str(tmp_path / "small.toml"), "--engine", "processes", "--out", str(mine), "--json")
    code, events, errors = call(capsys, *words)
    assert code == 3
    assert "holds files the fleet did not make" in errors
    assert [(event["event"], event["rounds"]) for event in events] == [("ended", 0)]
    assert [path.name for path in mine.iterdir()] == ["thesis.tex"]
    assert folder.entries() == ()


def test_settings_that_its_coordinator_would_refuse_are_refused_before_anything_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_of(tmp_path, "[coordinator.rounds]\nminimum = 7.5\n")
    words = (str(tmp_path / "small.toml"), "--engine", "processes", "--out", str(tmp_path / "out"), "--json")
    code, events, errors = call(capsys, *words)
    assert code == 3
    assert "rounds.minimum" in errors
    assert "[coordinator.rounds]" in errors
    assert [event["event"] for event in events] == ["ended"]
    assert not (tmp_path / "out" / "devices").exists()
    assert folder.entries() == ()


def test_a_second_fleet_of_the_name_is_not_taken_for_the_one_that_was_to_be_detached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_of(tmp_path)
    log = folder.index_folder() / "small.log"
    with folder.entered(Entry("small", "/elsewhere", "processes")):
        log.write_text("what the first one said")
        code, events, errors = call(capsys, str(tmp_path / "small.toml"), "--engine", "processes", "--detach", "--json")
    assert (code, events) == (3, [])
    assert "is running already in /elsewhere" in errors
    assert log.read_text() == "what the first one said"


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "1e9"])
def test_a_limit_of_time_that_is_none_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    plan_of(tmp_path)
    code, _, errors = call(capsys, str(tmp_path / "small.toml"), "--engine", "processes", f"--at-most={seconds}")
    assert code == 3
    assert "--at-most" in errors


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_terminal_that_closes_ends_it_as_ctrl_c_does_but_not_while_it_takes_away() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    with pytest.raises(KeyboardInterrupt), endings.in_order():
        os.kill(os.getpid(), signal.SIGHUP)
    done = []
    with endings.in_order(), endings.undisturbed():
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
        done.append("taken away")
    assert done


@pytest.mark.usefixtures("handlers")
def test_what_nohup_has_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with endings.in_order():
        os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
