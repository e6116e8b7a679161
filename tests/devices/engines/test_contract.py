"""Every engine does the same for a device: prepares it, starts it, ends it, starts it again, and takes it away."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from devices.engines.engine import Engine, EngineError, Limits, Start
from devices.engines.processes import Processes
from tests.waiting import until

_FOREVER = ("sh", "-c", "echo begun; while sleep 1; do :; done")
_UNLIMITED = Limits()


class Rig:
    """An engine with a fleet of this test's own."""

    def __init__(self, engine: Engine, folder: Path, fleet: str, image: str | None) -> None:
        self.engine, self.folder, self.fleet, self.image = engine, folder, fleet, image

    def device(self, name: str, fleet: str | None = None, limits: Limits = _UNLIMITED) -> Start:
        """A prepared device."""
        places = [self.folder / (fleet or self.fleet) / name / part for part in ("etc", "state", "data")]
        for place in places:
            place.mkdir(parents=True)
        etc, state, data = places
        start = Start(fleet or self.fleet, name, "amd64", limits, etc, state, data, self.image)
        self.engine.prepare(start)
        return start

    def printed(self, device: str) -> str:
        return subprocess.run(self.engine.logs(self.fleet, device), capture_output=True, text=True, check=True).stdout

    def state(self, device: str) -> str:
        return self.engine.condition(self.fleet, device).state


# Docker's command costs as much time again: it is tried where it could differ.
with_docker = pytest.mark.parametrize("rig", ["processes", "podman", "docker"], indirect=True)


@pytest.fixture(params=["processes", "podman"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    fleet = f"contract-{os.getpid()}"
    if request.param == "processes":
        rig = Rig(Processes(tmp_path / "notes"), tmp_path, fleet, None)
    else:
        rig = Rig(request.getfixturevalue(request.param), tmp_path, fleet, request.getfixturevalue("image"))
    yield rig
    for name in (fleet, f"{fleet}-other"):
        rig.engine.remove(name)


@with_docker
def test_a_device_is_absent_then_created_then_running_with_what_it_prints_in_its_log(rig: Rig) -> None:
    assert rig.state("a") == "absent"
    start = rig.device("a")
    assert rig.state("a") == "created"
    rig.engine.start(start, _FOREVER)
    until(lambda: "begun" in rig.printed("a"))
    condition = rig.engine.condition(rig.fleet, "a")
    assert condition.state == "running"
    assert condition.exit_code is None
    assert condition.memory_mib is not None
    assert condition.peak_mib is not None
    assert 0 < condition.memory_mib <= condition.peak_mib


@with_docker
def test_a_killed_device_has_ended_by_sigkill_and_starts_again_with_what_it_had(rig: Rig) -> None:
    start = rig.device("a")
    state = rig.engine.inside(start).state
    rig.engine.start(start, ("sh", "-c", f"echo more >> {state}/kept; exec sleep 1000"))
    until(lambda: (start.state / "kept").is_file())
    rig.engine.kill(rig.fleet, "a")
    ended = rig.engine.condition(rig.fleet, "a")
    assert (ended.state, ended.exit_code, ended.out_of_memory) == ("ended", 137, False)
    rig.engine.again(rig.fleet, "a")
    until(lambda: (start.state / "kept").read_text() == "more\nmore\n")
    assert rig.state("a") == "running"


def test_a_kill_reaches_the_children_of_its_process(rig: Rig) -> None:
    start = rig.device("a")
    place = rig.engine.inside(start).state
    rig.engine.start(start, ("sh", "-c", f"(flock 9; echo held > {place}/held; sleep 1000) 9> {place}/lock & wait"))
    until((start.state / "held").exists)
    rig.engine.kill(rig.fleet, "a")
    with (start.state / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_an_exit_code_of_its_own_is_told(rig: Rig) -> None:
    rig.engine.start(rig.device("a"), ("sh", "-c", "exit 5"))
    until(lambda: rig.state("a") == "ended")
    ended = rig.engine.condition(rig.fleet, "a")
    assert (ended.exit_code, ended.out_of_memory) == (5, False)


def test_a_stop_lets_it_end_by_itself_and_forces_one_that_does_not(rig: Rig) -> None:
    polite = ("sh", "-c", "trap 'exit 7' TERM; echo begun; while :; do sleep 0.02; done")
    stubborn = ("sh", "-c", "trap '' TERM; echo begun; while :; do sleep 0.02; done")
    for name, words in (("polite", polite), ("stubborn", stubborn)):
        rig.engine.start(rig.device(name), words)
        until(lambda name=name: "begun" in rig.printed(name))  # type: ignore[misc]
        rig.engine.stop(rig.fleet, name, 5.0 if name == "polite" else 0.0)
    codes = [rig.engine.condition(rig.fleet, name).exit_code for name in ("polite", "stubborn")]
    assert codes == [7, 137]


@with_docker
def test_a_command_runs_to_its_end_in_a_device_like_it_and_leaves_only_what_it_wrote(rig: Rig) -> None:
    start = replace(rig.device("a"), environment={"WORD": "said"})
    place = rig.engine.inside(start).state / "word"
    done = rig.engine.run(start, ("sh", "-c", f"echo $WORD > {place}; echo out; echo err >&2; exit 3"), 30)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")
    assert (start.state / "word").read_text() == "said\n"
    assert rig.state("a") == "created"


def test_a_command_that_takes_too_long_is_ended(rig: Rig) -> None:
    start = rig.device("a")
    place = rig.engine.inside(start).state / "pid"
    with pytest.raises(EngineError, match="took more than"):
        rig.engine.run(start, ("sh", "-c", f"echo begun > {place}; exec sleep 1000"), 1.5)
    assert rig.state("a") == "created"


def test_a_socket_on_its_loopback_is_reached_from_inside_and_stays_through_a_kill(rig: Rig) -> None:
    start = rig.device("a")
    with rig.engine.listen(rig.fleet, "a", 1883) as listener:
        port = listener.getsockname()[1]
        greet = ("perl", "-MIO::Socket::INET", "-e", f'IO::Socket::INET->new("127.0.0.1:{port}")->print("hello")')
        rig.engine.start(start, greet)
        listener.settimeout(10)
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                assert connection.recv(100) == b"hello"
            rig.engine.kill(rig.fleet, "a")
            rig.engine.again(rig.fleet, "a")


def test_a_command_in_a_running_device_sees_its_environment(rig: Rig) -> None:
    rig.engine.start(replace(rig.device("a"), environment={"WORD": "said"}), _FOREVER)
    words = rig.engine.execute(rig.fleet, "a", ("sh", "-c", "echo $WORD"))
    assert subprocess.run(words, capture_output=True, text=True).stdout == "said\n"


@with_docker
def test_what_is_removed_is_the_fleet_and_nothing_else(rig: Rig) -> None:
    other = f"{rig.fleet}-other"
    rig.engine.start(rig.device("a"), _FOREVER)
    rig.engine.start(rig.device("b", other), _FOREVER)
    rig.device("c")
    assert rig.engine.devices(rig.fleet) == ("a", "c")
    assert {rig.fleet, other} <= set(rig.engine.fleets())
    rig.engine.remove(rig.fleet)
    assert rig.engine.devices(rig.fleet) == ()
    assert rig.state("a") == "absent"
    assert rig.engine.condition(other, "b").state == "running"
    rig.engine.remove(rig.fleet)
    rig.engine.remove(other)
    assert not {rig.fleet, other} & set(rig.engine.fleets())


def test_a_device_that_is_there_is_not_prepared_twice(rig: Rig) -> None:
    start = rig.device("a")
    with pytest.raises(EngineError, match="down"):
        rig.engine.prepare(start)


@with_docker
def test_what_an_engine_lacks_is_said_for_each_limit_that_was_asked(rig: Rig) -> None:
    asked = Limits(cores=0.5, memory_mib=96, disk_mib=32)
    rig.engine.start(rig.device("a", limits=asked), _FOREVER)
    got = rig.engine.in_force(rig.fleet, "a")
    for name in ("cores", "memory_mib", "disk_mib"):
        assert (getattr(got.limits, name) is None) == (name in got.why)
