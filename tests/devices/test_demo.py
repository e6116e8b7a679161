"""The demo over fake parts, in real processes: what it shows, what it saves, and that nothing is left running."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from devices.datasets import PROJECT_ROOT
from devices.processes import PartFailedError, output_lines, start, stop, wait
from protocol.errors import ConfigurationError
from tests.devices.fake_parts import ROUNDS
from tests.waiting import until


class Demo:
    """Runs the command with the fake parts in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.pids = folder / "pids"
        self.pids.mkdir()

    def run(self, trouble: str = "", *arguments: str) -> subprocess.CompletedProcess[str]:
        for pid in self.pids.iterdir():
            pid.unlink()
        with self.started(trouble, *arguments) as process:
            stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    @contextmanager
    def started(self, trouble: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "tests.devices.fake_demo", "demo", "--out", str(self.out), *arguments]
        environment = {**os.environ, "FAKE_TROUBLE": trouble, "FAKE_PIDS": str(self.pids), "COLUMNS": "200"}
        with subprocess.Popen(
            command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def alive(self) -> list[str]:
        return [p.name for p in self.pids.iterdir() if _runs(int(p.name.rpartition("-")[2]))]

    def training(self) -> bool:
        """All parts have started."""
        return len(list(self.pids.iterdir())) == 7


def _runs(pid: int) -> bool:
    try:
        # A zombie has ended; whoever adopted it may not have noticed yet.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    return Demo(tmp_path)


def test_a_run_shows_every_round_saves_report_and_model_and_starts_warm_the_next_time(demo: Demo) -> None:
    result = demo.run()
    assert result.returncode == 0, result.stdout + result.stderr
    for number in range(1, ROUNDS + 1):
        assert f"{number}/30" in result.stdout
    assert "fake 1.0 (private)" in result.stdout
    assert "97.1 %" in result.stdout
    assert "exported, parity with torch proven" in result.stdout
    assert "device-05" in (demo.out / "report.html").read_text()
    assert (demo.out / "inference.onnx").is_file()
    assert demo.alive() == []

    again = demo.run("", "--json", "--codec", "topk:0.03/ternary", "--downlink", "topk:0.1/int8")
    assert "kept from the last run" in again.stderr
    facts = json.loads(again.stdout)
    assert facts["reached"] is True
    assert facts["rounds"] == ROUNDS
    assert facts["bytes_up"] == 100 * ROUNDS
    settings = tomllib.loads((demo.out / "coordinator.toml").read_text())
    assert (settings["training"]["codec"], settings["downlink"]["codec"]) == ("topk:0.03/ternary", "topk:0.1/int8")


def test_with_a_link_every_agent_connects_through_one_of_its_own(demo: Demo) -> None:
    result = demo.run("", "--link", "lte")
    assert result.returncode == 0, result.stdout + result.stderr
    for number in range(1, 6):
        device = f"device-{number:02d}"
        url = tomllib.loads((demo.out / "agents" / device / "agent.toml").read_text())["broker"]["url"]
        said = (demo.out / "logs" / f"link-{device}.log").read_text()
        assert f"port={url.rpartition(':')[2]}" in said.splitlines()[0]
    assert demo.alive() == []


def test_a_link_that_is_not_known_is_refused_before_anything_starts(demo: Demo) -> None:
    result = demo.run("", "--link", "carrier-pigeon")
    assert result.returncode == 3
    assert "lte-poor" in result.stderr


def test_a_missed_target_is_exit_code_1_and_said_clearly(demo: Demo) -> None:
    result = demo.run("poor")
    assert result.returncode == 1
    assert "Target of 97.0 % not reached in 3 rounds" in result.stdout
    assert (demo.out / "report.html").is_file()


@pytest.mark.parametrize(
    ("trouble", "code", "says"),
    [
        ("agent-dies", 1, ("device-02 ended early (exit code 1)", "the disk is on fire")),
        ("coordinator-dies", 1, ("coordinator ended early (exit code 1)", "the store is gone")),
        ("export-fails", 3, ("export ended early (exit code 3)", "HardSwish")),
    ],
)
def test_a_part_that_dies_is_named_with_its_log_and_takes_the_rest_along(
    demo: Demo, trouble: str, code: int, says: tuple[str, ...]
) -> None:
    result = demo.run(trouble)
    assert result.returncode == code
    for text in says:
        assert text in result.stderr
    assert demo.alive() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_every_process_and_the_demo_with_one_line(demo: Demo, number: signal.Signals) -> None:
    with demo.started("endless") as process:
        until(demo.training, "all parts run")
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert stderr.count("\n") == 1
    assert number.name in stderr
    assert demo.alive() == []


def test_a_killed_demo_leaves_no_process(demo: Demo) -> None:
    with demo.started("endless") as process:
        until(demo.training, "all parts run")
        process.kill()
        process.wait()
        # The broker is its coordinator's to end; what is ours goes with us.
        until(lambda: not [n for n in demo.alive() if not n.startswith("broker")], "all children are gone")
    for name in demo.alive():
        os.kill(int(name.rpartition("-")[2]), signal.SIGKILL)


def test_two_demos_cannot_share_a_folder(demo: Demo) -> None:
    with demo.started("endless") as process:
        until(demo.training, "all parts run")
        second = subprocess.run(
            [sys.executable, "-m", "devices", "demo", "--out", str(demo.out)],
            cwd=PROJECT_ROOT,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == ConfigurationError.exit_code
        assert "another demo is running" in second.stderr
        assert process.poll() is None
        process.terminate()
        process.communicate(timeout=30)


def test_a_folder_with_other_files_is_refused_and_left_alone(demo: Demo) -> None:
    demo.out.mkdir()
    (demo.out / "thesis.tex").write_text("precious")
    result = demo.run()
    assert result.returncode == ConfigurationError.exit_code
    assert "holds files the demo did not make" in result.stderr
    assert [p.name for p in demo.out.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--data", "cifar"), "known: digits, hapt, fashion, fsdd"),
        (("--agents", "0"), "agents: 0 is outside"),
        (("--rounds", "0"), "rounds: 0 is outside"),
        (("--target-accuracy", "95"), "target-accuracy: 95.0 is outside"),
        (("--agents", "many"), "invalid int value"),
    ],
)
def test_a_wrong_option_is_refused_before_anything_is_made(demo: Demo, arguments: tuple[str, ...], says: str) -> None:
    result = demo.run("", *arguments)
    assert result.returncode == ConfigurationError.exit_code
    assert says in result.stderr
    assert not demo.out.exists()


def test_a_process_that_will_not_listen_is_killed_with_its_group(tmp_path: Path) -> None:
    script = "trap '' TERM; sleep 1000 & echo $!; while true; do wait; done"
    child = start("deaf", ("sh", "-c", script), tmp_path / "log", pipe=True)
    grandchild = int(child.stdout.readline())
    stop([child], grace_s=0.2)
    assert child.exit_code == -signal.SIGKILL
    until(lambda: not _runs(grandchild), "the grandchild is gone")
    stop([child])


def test_lines_arrive_as_they_are_printed_and_a_silent_process_is_given_up(tmp_path: Path) -> None:
    child = start("talker", ("sh", "-c", "echo one; echo two; echo oops >&2; sleep 1000"), tmp_path / "log", pipe=True)
    lines = output_lines(child, (), lambda: None, stall_s=0.3)
    assert [next(lines), next(lines)] == [b"one", b"two"]
    with pytest.raises(PartFailedError, match=r"talker has said nothing for 0 s(.|\n)*oops"):
        next(lines)
    stop([child])


def test_a_command_that_fails_tells_its_signal(tmp_path: Path) -> None:
    child = start("victim", ("sh", "-c", "kill -SEGV $$"), tmp_path / "log")
    with pytest.raises(PartFailedError, match="killed by SIGSEGV"):
        wait(child, lambda: None)
