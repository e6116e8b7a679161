"""fleet-emulate doctor: what it says of an engine that is there, of one that is not, and how it exits."""

import json
from pathlib import Path

import pytest

from devices.cli import main
from devices.engines.containers import Containers
from devices.engines.doctor import Diagnosis, lines
from devices.engines.engine import Finding

MACHINE = {"cores", "memory", "disk", "netem", "disks", "arm64", "mosquitto", "mmdebstrap"}


def test_plain_processes_are_fit_and_their_lack_of_limits_is_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--engine", "processes", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["engine"] == "processes"
    limits = next(finding for finding in said["engines"]["processes"] if finding["name"] == "limits")
    assert limits["state"] == "warning"
    assert "podman" in limits["remedy"]
    assert {finding["name"] for finding in said["machine"]} == MACHINE


def test_an_engine_that_is_not_installed_is_an_error_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["doctor"]) == 3
    said = capsys.readouterr().out
    assert "apt-get install podman runc" in said
    assert "no engine here can hold a board's limits" in said


@pytest.mark.timeout(600)
def test_an_engine_that_is_there_is_what_fleets_get(podman: Containers, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--engine", podman.name]) == 0
    said = capsys.readouterr().out
    assert "ok     limits" in said
    assert "fleets are emulated by podman" in said


def test_every_remedy_is_printed_and_what_a_spare_engine_lacks_is_no_error() -> None:
    good, bad = Finding("podman", "ok", "4.3"), Finding("docker", "error", "not installed", "apt-get install docker.io")
    low = Finding("memory", "warning", "only 0.5 GiB free", "close what else runs")
    told = "\n".join(lines(Diagnosis("podman", {"podman": (good,), "docker": (bad,)}, (low,))))
    assert bad.remedy in told
    assert low.remedy in told
    assert "ERROR" not in told
    assert "ERROR" in "\n".join(lines(Diagnosis(None, {"docker": (bad,)}, ())))


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert main(["doctor", "--engine", "processes", "--out", str(tmp_path / "none")]) == 3
