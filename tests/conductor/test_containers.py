"""A fleet of real containers from its file to its record: limits in force, enrolled, disturbed, taken away whole."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from devices.datasets import PROJECT_ROOT
from tests.conftest import require_broker

pytestmark = [pytest.mark.real, pytest.mark.slow]

# Shares are given, not calibrated: that takes the digits' own bundle, and a quiet machine.
_FLEET = """
name = "{name}"
data = "digits"
rounds = 3
clock = 0.5

[[devices]]
board = "raspberry-pi-4"
name = "pi4"
count = 2
cores = 0.7
memory_mib = 256
disk_mib = 64

[[faults]]
at_s = 2.0
device = "pi4-1"
do = "power-cut"
for_s = 2.0

[[faults]]
at_s = 2.5
device = "pi4-2"
do = "cut"
for_s = 2.0
"""


@pytest.mark.timeout(400)
def test_a_fleet_in_containers_trains_within_limits_that_hold_and_is_taken_away_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0 or shutil.which("podman") is None or shutil.which("mmdebstrap") is None:
        pytest.skip("containers with limits need root, podman and mmdebstrap")
    require_broker("mosquitto")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    name = f"boxes-{os.getpid()}"
    (tmp_path / "fleet.toml").write_text(_FLEET.format(name=name))
    words = ("up", str(tmp_path / "fleet.toml"), "--engine", "podman", "--out", str(tmp_path / "out"), "--json")
    command = (sys.executable, "-m", "tests.conductor.tiny_fleet", *words)
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=380)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["outcome"] == "rounds"
    for device in record["devices"]:
        limits = {"cores": 0.7, "memory_mib": 256, "disk_mib": 64}
        assert device["asked"] == device["in_force"]["limits"] == limits
        assert device["enrolled_s"] > 0
        assert device["peak_mib"] > 10
    assert sum(device["accepted"] for device in record["devices"]) >= 3
    left = subprocess.run(("podman", "ps", "--all", "--format", "{{.Names}}"), capture_output=True, text=True).stdout
    assert name not in left
    assert name not in Path("/proc/mounts").read_text()
