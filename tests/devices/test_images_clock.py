"""The clock of a device in a container: its file, and sleeping beside libfaketime."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices.images import clock, clock_environment, set_clock
from devices.images.clock import clock_text

SLEEPS = """
import time
began = time.monotonic()
time.sleep(0.05)
assert 0.05 <= time.monotonic() - began < 10
time.sleep(0)
try:
    time.sleep(-1)
except ValueError as error:
    print(time.sleep.__module__, error)
"""


@pytest.mark.parametrize(("offset_s", "text"), [(0.0, b"+000000000000.000\n"), (-90.5, b"-000000000090.500\n")])
def test_an_offset_has_a_sign_and_always_as_many_bytes(offset_s: float, text: bytes) -> None:
    assert clock_text(offset_s) == text
    assert len(clock_text(4e8)) == len(text)


def test_a_clock_is_set_in_the_file_that_a_container_has_mounted(tmp_path: Path) -> None:
    file = tmp_path / "clock"
    set_clock(file, 3600.0)
    before = file.stat().st_ino
    set_clock(file, -1.0)
    assert (file.read_bytes(), file.stat().st_ino) == (clock_text(-1.0), before)


def test_what_a_device_is_started_with_names_its_file_and_leaves_monotonic_clocks_alone() -> None:
    environment = clock_environment("/run/clock")
    assert environment["FAKETIME_TIMESTAMP_FILE"] == "/run/clock"
    assert environment["FAKETIME_DONT_FAKE_MONOTONIC"] == "1"
    assert environment["PYTHONPATH"] == clock.SHIM


def test_sleeping_keeps_its_length_and_its_refusals(tmp_path: Path) -> None:
    shim = Path(clock.__file__).with_name("sleeping.py")
    (tmp_path / "sitecustomize.py").write_bytes(shim.read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", SLEEPS],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "sitecustomize sleep length must be non-negative"), done.stderr
