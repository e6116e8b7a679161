"""What cannot be is refused before anything starts, with what to install or change, and exit code 3."""

import argparse
from pathlib import Path

import pytest
from rich.console import Console

from devices.conductor import engines, room
from devices.conductor.folder import Entry, entered, leave
from devices.conductor.joining import enrolment, tokens
from devices.conductor.planning import fleet_of
from devices.engines.engine import Engine, Finding, Limits, Start
from devices.fleet.plan import Joined
from protocol.errors import ConfigurationError
from tests.conductor.fake_engine import FakeEngine
from tests.conductor.plans import plan_of


@pytest.fixture(autouse=True)
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """podman in memory; docker is not there."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(room, "check_containers", lambda plan, place, engine: None)
    found = FakeEngine()
    absent = FakeEngine("docker", (Finding("docker", "error", "no such command", "apt-get install docker.io"),))
    known: dict[str, Engine] = {"podman": found, "docker": absent, "processes": FakeEngine("processes")}
    monkeypatch.setattr(engines, "ENGINES", {name: lambda name=name: known[name] for name in known})
    return found


def options(folder: Path, more: str = "", **said: object) -> argparse.Namespace:
    plan_of(folder, more)
    given: dict[str, object] = {"engine": None, "rounds": None, "at_most": None, "compose": None}
    given |= {"keep": False, "json": False, "detach": False}
    return argparse.Namespace(file=folder / "small.toml", out=folder / "out", **(given | said))


def refused(folder: Path, says: str, more: str = "", **said: object) -> None:
    with pytest.raises(ConfigurationError, match=says):
        fleet_of(options(folder, more, **said), Console(quiet=True))
    assert not (folder / "out").exists()


def test_the_first_engine_that_can_hold_limits_is_taken(tmp_path: Path) -> None:
    fleet = fleet_of(options(tmp_path), Console(quiet=True))
    assert fleet.engine.name == "podman"
    assert {name: engine.name for name, engine in fleet.engines.items()} == {
        "pi4-1": "podman",
        "pi4-2": "podman",
        "light": "processes",
    }


def test_an_engine_that_is_not_here_is_named_with_what_to_install(tmp_path: Path, engine: FakeEngine) -> None:
    refused(tmp_path, "docker: no such command; apt-get install docker.io", engine="docker")
    engine.findings = (Finding("limits", "error", "the kernel has no quota", "enable the cpu controller"),)
    refused(tmp_path, "enable the cpu controller.*--engine processes")


def test_a_name_that_a_fleet_or_an_engine_has_is_refused_by_name(tmp_path: Path, engine: FakeEngine) -> None:
    with entered(Entry("small", "/elsewhere", "podman")):
        refused(tmp_path, "'small' is running already in /elsewhere; fleet-emulate down small")
    refused(tmp_path, "'small' was left in /elsewhere")
    leave("small")
    engine.prepare(Start("small", "pi4-1", "amd64", Limits(), tmp_path, tmp_path, tmp_path))
    refused(tmp_path, "podman has devices of that name already; fleet-emulate down small")


def test_too_little_room_is_said_with_both_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "available_mib", lambda: 10)
    refused(tmp_path, "3 need about .* MiB of this machine's memory and 10 are free")
    monkeypatch.undo()
    monkeypatch.setattr(room, "_MIB", 1 << 40)
    with pytest.raises(ConfigurationError, match=r"MiB are free and 3 devices need .* --out"):
        room.check_disk(plan_of(tmp_path), tmp_path / "out" / "deeper")


def test_more_cores_than_there_are_cannot_be_given(tmp_path: Path) -> None:
    more = '[[devices]]\nboard = "raspberry-pi-5"\nname = "vast"\ncores = 64.0\n'
    refused(tmp_path, "cores given in the fleet's file sum to 64", more=more)


def test_rounds_out_of_range_are_named(tmp_path: Path) -> None:
    refused(tmp_path, "--rounds: 0 is outside", rounds=0)


def test_a_coordinator_that_is_joined_must_say_where_and_with_enough_tokens(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("one\n\ntwo\n")
    joined = Joined("server:8884", "mqtts://server:8883", path)
    assert (enrolment(joined).host, enrolment(joined).port) == ("server", 8884)
    assert tokens(joined, 2) == ("one", "two")
    with pytest.raises(ConfigurationError, match="has 2 for 3 devices; fleet-coordinator token --count 3"):
        tokens(joined, 3)
    with pytest.raises(ConfigurationError, match="must be HOST:PORT"):
        enrolment(Joined("server", "mqtts://server:8883", path))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        tokens(Joined("server:1", "mqtts://server", tmp_path / "none"), 1)
