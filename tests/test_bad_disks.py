"""A state folder on a disk that is full or read-only: named by check, status and run, and what waits is still shown."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.real_fleet import ROOT
from tests.test_full_disks import UNSHARE

pytestmark = pytest.mark.real


def test_a_disk_that_is_full_or_read_only_has_a_message_an_exit_code_and_a_remedy(tmp_path: Path) -> None:
    mount = (*UNSHARE, "mount", "-t", "tmpfs", "tmpfs", str(tmp_path))
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no mount namespace may be made here, so there is no small disk to fill")
    command = (*UNSHARE, sys.executable, "-m", "tests.bad_disk", str(tmp_path))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stdout + done.stderr
