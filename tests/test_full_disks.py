"""A disk that is full at whatever write comes next: said plainly, waited for, and nothing lost or overwritten."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coordinator.broker import Broker
from tests.real_fleet import ROOT

pytestmark = pytest.mark.real

# Whoever is not root becomes it in a namespace, where the system lets them.
UNSHARE = ("unshare", "--mount", *(() if os.geteuid() == 0 else ("--map-root-user",)))


@pytest.mark.parametrize("part", ["coordinator", "device-00"])
def test_a_disk_that_fills_up_and_is_freed_costs_time_only(part: str, tmp_path: Path, mosquitto: Broker) -> None:
    mount = (*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path))
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no mount namespace may be made here, so there is no small disk to fill")
    command = (*UNSHARE, sys.executable, "-m", "tests.full_disk", str(tmp_path), part, mosquitto.url)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
