"""Devices as plain processes: found by another process, never mistaken, and honest about what is not limited."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from devices.engines.engine import EngineError, Limits, Start
from devices.engines.processes import Processes
from tests.waiting import until

_FOREVER = ("sh", "-c", "echo begun; while sleep 1; do :; done")
_UNLIMITED = Limits()


def prepared(engine: Processes, folder: Path, limits: Limits = _UNLIMITED) -> Start:
    etc, state, data = (folder / part for part in ("etc", "state", "data"))
    state.mkdir()
    start = Start("fleet", "a", "amd64", limits, etc, state, data)
    engine.prepare(start)
    return start


def test_another_process_finds_a_device_and_ends_it(tmp_path: Path) -> None:
    engine = Processes(tmp_path / "notes")
    engine.start(prepared(engine, tmp_path), _FOREVER)
    program = (
        "from pathlib import Path; from devices.engines.processes import Processes\n"
        f"engine = Processes(Path({str(tmp_path / 'notes')!r}))\n"
        "print(engine.condition('fleet', 'a').state); engine.kill('fleet', 'a')\n"
        "print(engine.condition('fleet', 'a').exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["running", "137"]
    assert engine.condition("fleet", "a").exit_code == 137
    engine.remove("fleet")


def test_another_process_with_the_number_of_one_that_ended_is_left_alone(tmp_path: Path) -> None:
    engine = Processes(tmp_path / "notes")
    engine.start(prepared(engine, tmp_path), ("true",))
    until(lambda: engine.condition("fleet", "a").state == "ended")
    bystander = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        path = tmp_path / "notes" / "fleet" / "a.json"
        note = json.loads(path.read_text())
        note["session"]["pid"] = bystander.pid
        path.write_text(json.dumps(note))
        assert engine.condition("fleet", "a").state == "ended"
        engine.stop("fleet", "a", 0)
        engine.remove("fleet")
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_limit_of_memory_holds_for_each_process_and_is_said_to_be_no_more(tmp_path: Path) -> None:
    engine = Processes(tmp_path / "notes")
    start = prepared(engine, tmp_path, Limits(memory_mib=64))
    done = engine.run(start, ("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"), 30)
    assert done.returncode == 1
    assert b"memory exhausted" in done.stderr
    assert "RLIMIT_DATA" in engine.in_force("fleet", "a").why["memory_mib"]
    engine.remove("fleet")


def test_a_throttle_is_refused_with_the_reason(tmp_path: Path) -> None:
    engine = Processes(tmp_path / "notes")
    prepared(engine, tmp_path)
    with pytest.raises(EngineError, match="needs a container"):
        engine.throttle("fleet", "a", 0.5)


def test_what_a_device_took_is_told_when_it_has_ended(tmp_path: Path) -> None:
    engine = Processes(tmp_path / "notes")
    engine.start(prepared(engine, tmp_path), ("dd", "if=/dev/zero", "of=/dev/null", "bs=50M", "count=40"))
    until(lambda: engine.condition("fleet", "a").state == "ended")
    took = engine.condition("fleet", "a")
    assert took.exit_code == 0
    assert took.peak_mib is not None
    assert took.peak_mib > 50
    assert took.cpu_s > 0
    engine.remove("fleet")


def test_what_a_device_takes_is_what_its_children_take_too(tmp_path: Path) -> None:
    engine = Processes(tmp_path / "notes")
    hold = "perl -e '$x = \"x\" x (60 << 20); sleep 1000' & "
    engine.start(prepared(engine, tmp_path), ("sh", "-c", f"{hold} {hold} wait"))
    until(lambda: (engine.condition("fleet", "a").memory_mib or 0) > 120)
    assert (engine.condition("fleet", "a").peak_mib or 0) > 120
    assert engine.condition("fleet", "a").cpu_s > 0
    engine.remove("fleet")


def test_a_device_that_nobody_has_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="fleet/a"):
        Processes(tmp_path).kill("fleet", "a")


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    engine = Processes(tmp_path / "notes")
    with pytest.raises(EngineError, match="no-such-command"):
        engine.run(prepared(engine, tmp_path), ("no-such-command",), 30)
