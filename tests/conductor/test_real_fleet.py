"""fleet-emulate up, ps, cut, kill and down, as an operator calls them, with real agents, coordinator and broker."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.cli import _parser
from devices.datasets import PROJECT_ROOT
from protocol.command import run_command
from tests.conftest import require_broker
from tests.waiting import until

pytestmark = pytest.mark.real

_FLEET = """
name = "{name}"
data = "digits"
rounds = {rounds}
clock = 0.05

[[devices]]
board = "raspberry-pi-4"
name = "pi4"
count = 2
link = "lte"

[[devices]]
board = "raspberry-pi-5"
name = "pi5"
light = true

[[faults]]
at_s = 1.0
device = "pi4-1"
do = "kill"

[[faults]]
at_s = 60.0
device = "pi4-2"
do = "disk-full"
for_s = 10.0
"""


class Terminal:
    """Calls the command with this test's own index of fleets; what is soon done, in this process."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.folder, self.name, self._capture = folder, f"tiny-{os.getpid()}", capture
        self.out = folder / "out"
        self.started: list[subprocess.Popen[str]] = []

    def up(self, rounds: int, *words: str, out: Path | None = None) -> subprocess.Popen[str]:
        plan = self.folder / "fleet.toml"
        plan.write_text(_FLEET.format(name=self.name, rounds=rounds))
        module = (sys.executable, "-m", "tests.conductor.tiny_fleet", "up", str(plan))
        process = subprocess.Popen(
            (*module, "--engine", "processes", "--out", str(out or self.out), *words),
            cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def call(self, *words: str) -> tuple[int, str]:
        """Exit code, and all that it said."""
        code = run_command(_parser(), list(words))
        said = self._capture.readouterr()
        return code, said.out + said.err

    def status(self) -> dict[str, Any]:
        code, said = self.call("ps", "--json")
        found: list[dict[str, Any]] = json.loads(said)["fleets"] if code == 0 else []
        return found[0] if found else {}

    def row(self, device: str) -> dict[str, Any]:
        (found,) = [row for row in self.status()["devices"] if row["device"] == device]
        return dict(found)

    def until_round(self, number: int) -> None:
        until(lambda: self.status().get("round", 0) >= number, f"round {number} is done", 90.0)

    def alive(self) -> list[int]:
        """Processes that have this test's folder in their command line, but for the terminal's own."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes()
            except OSError:
                continue
            if str(self.out).encode() in words:
                found.append(int(path.parent.name))
        return found


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Terminal]:
    require_broker("mosquitto")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    terminal = Terminal(tmp_path, capsys)
    yield terminal
    for process in terminal.started:
        process.kill()
        process.communicate()
    terminal.call("down", terminal.name)


def test_a_fleet_of_processes_trains_through_its_faults_and_leaves_only_its_record(terminal: Terminal) -> None:
    process = terminal.up(3, "--json")
    out, errors = process.communicate(timeout=100)
    assert process.returncode == 0, out + errors
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["round"] for event in events if event["event"] == "round-committed"] == [1, 2, 3]
    assert events[-1]["outcome"] == "rounds"
    record = json.loads((terminal.out / "record.json").read_text())
    devices = {one["device"]: one for one in record["devices"]}
    assert sum(one["accepted"] for one in devices.values()) >= 3
    assert all(one["enrolled_s"] > 0 and one["bytes_up"] > 0 for one in devices.values() if one["accepted"])
    killed = [one["what"] for one in record["happenings"] if one["device"] == "pi4-1"]
    assert killed[:2] == ["kill", "exit"]
    assert "neither processor, memory nor disk was limited" in record["notes"][0]
    assert (terminal.out / "report.html").stat().st_size > 1000
    assert terminal.alive() == []
    assert terminal.call("ps")[0] == 2


def test_an_operator_looks_into_a_fleet_disturbs_it_and_takes_away_what_a_killed_conductor_left(
    terminal: Terminal,
) -> None:
    process = terminal.up(10_000)
    terminal.until_round(1)
    assert terminal.call("cut", "pi4-2")[0] == 0
    assert terminal.row("pi4-2")["presence"] == "cut"
    assert terminal.call("restore", "pi4-2")[0] == 0
    assert terminal.row("pi4-2")["presence"] == "on"
    assert terminal.call("kill", "pi4-2")[0] == 0
    until(lambda: terminal.row("pi4-2")["restarts"] == 1)
    assert terminal.call("cut", "toaster") == (
        3,
        "fleet-emulate: device: 'toaster' is not of this fleet, which has pi4-1, pi4-2, pi5\n",
    )
    second = terminal.up(1, out=terminal.folder / "other")
    assert f"'{terminal.name}' is running already in {terminal.out}" in second.communicate(timeout=60)[1]
    assert second.returncode == 3
    assert not (terminal.folder / "other").exists()
    process.kill()
    process.wait()
    seen = terminal.status()
    assert seen["conducted"] is False
    assert {row["device"] for row in seen["devices"]} == {"pi4-1", "pi4-2", "pi5"}
    code, said = terminal.call("cut", "pi4-1")
    assert code == 4
    assert f"fleet-emulate down {terminal.name}" in said
    assert terminal.call("down") == (0, f"taken down: {terminal.name}\n")
    until(lambda: terminal.alive() == [])
    assert terminal.call("down", terminal.name)[0] == 2


def test_an_interrupted_fleet_writes_its_record_and_leaves_nothing(terminal: Terminal) -> None:
    process = terminal.up(10_000)
    terminal.until_round(1)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, out + errors
    assert "Traceback" not in errors
    record = json.loads((terminal.out / "record.json").read_text())
    assert record["outcome"] == "interrupted"
    assert record["rounds"]
    assert terminal.alive() == []


def test_a_coordinator_that_is_killed_fails_the_fleet_which_says_so_and_leaves_nothing(terminal: Terminal) -> None:
    process = terminal.up(10_000, "--json")
    terminal.until_round(1)
    (coordinator,) = [
        number for number in terminal.alive() if b"--exit-when-finished" in Path(f"/proc/{number}/cmdline").read_bytes()
    ]
    os.kill(coordinator, signal.SIGKILL)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 1, out + errors
    ended = json.loads(out.splitlines()[-1])
    assert (ended["event"], ended["outcome"]) == ("ended", "coordinator ended early (killed by SIGKILL)")
    assert json.loads((terminal.out / "record.json").read_text())["outcome"] == ended["outcome"]
    assert terminal.alive() == []
    assert terminal.call("ps")[0] == 2


def test_a_fleet_that_is_taken_down_while_it_is_raised_ends_at_once_and_whole(terminal: Terminal) -> None:
    process = terminal.up(10_000, "--json", "--at-most", "600")
    until(lambda: terminal.status().get("devices", []) != [], "devices are raised", 60.0)
    assert terminal.call("down") == (0, f"taken down: {terminal.name}\n")
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130, out + errors
    assert json.loads(out.splitlines()[-1])["outcome"] == "taken down"
    assert terminal.alive() == []
