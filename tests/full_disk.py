"""A fleet whose coordinator or first agent has a small disk that fills up: `python -m tests.full_disk FOLDER PART URL`.

It runs in a mount namespace of its own, where the disk is a tmpfs that nobody else sees: see test_full_disks.py.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

from devices.processes import Child
from protocol.disk import REMEDY
from protocol.mqtt import parse_url
from tests.audit import audit
from tests.real_fleet import RealFleet

DISK_MIB = 64
# Three chunks a model and an update.
FEATURES = 20_000
# What is left free: nothing; a page of the database; less than an update; less than a model and an update.
LEFT = (0, 4096, 100_000, 250_000)
SAID = REMEDY  # in whatever words a part says what failed: its store, or a finished update that cannot be kept


def main() -> None:
    folder, part, url = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    training = 'local_steps = 2\ncodec = "all/float32"'
    fleet = RealFleet(
        folder, url, 10_000, devices=2, training=training, features=FEATURES, deadline_s=2.0, port=parse_url(url).port
    )
    state = folder / ("coordinator" if part == "coordinator" else f"{part}/state")
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", str(state)], check=True)
    try:
        fleet.start()
        fleet.until(lambda: len(fleet.committed()) >= 1)
        for left in LEFT:
            full(fleet, state, part, left)
        restart_on_a_full_disk(fleet, state, part)
        fleet.end_after(2)
        fleet.finish()
        fleet.settle()
        assert audit(folder) == fleet.version()
    finally:
        fleet.stop()


def full(fleet: RealFleet, state: Path, part: str, left: int) -> None:
    """The disk is full for a while; then there is room, and rounds go on by themselves."""
    log = process(fleet, part).log
    filler = fill(state, left)
    fleet.until(lambda: SAID in log.read_text())
    time.sleep(1.0)  # more attempts fail meanwhile, of which not each is said
    assert process(fleet, part).exit_code is None, "a full disk is waited for"
    filler.unlink()
    reached = len(fleet.committed()) + 2
    fleet.until(lambda: len(fleet.committed()) >= reached)


def restart_on_a_full_disk(fleet: RealFleet, state: Path, part: str) -> None:
    """A start that needs room is refused, and says what to do; one that needs none goes on as any other process."""
    fleet.kill(process(fleet, part))
    filler = fill(state, 0)
    _start(fleet, part)
    started = process(fleet, part)
    before = started.log.read_text().count("connected")
    fleet.until(lambda: started.exit_code is not None or started.log.read_text().count("connected") > before)
    filler.unlink()
    if started.exit_code is not None:
        assert started.exit_code == 1
        assert "free disk space" in started.log.read_text().splitlines()[-1]
        _start(fleet, part)
    reached = len(fleet.committed()) + 2
    fleet.until(lambda: len(fleet.committed()) >= reached)


def _start(fleet: RealFleet, part: str) -> None:
    if part == "coordinator":
        fleet.start_coordinator()
    else:
        fleet.start_agent(part)


def process(fleet: RealFleet, part: str) -> Child:
    child = fleet.coordinator if part == "coordinator" else fleet.agents[part]
    assert child is not None
    return child


def fill(state: Path, left: int) -> Path:
    """A file that takes all room but so many bytes."""
    filler = state / "filler"
    with filler.open("wb", buffering=0) as file:
        while (free := os.statvfs(state).f_bavail * os.statvfs(state).f_bsize) > left:
            try:
                file.write(bytes(min(free - left, 1 << 20)))
            except OSError:
                break
    return filler


if __name__ == "__main__":
    main()
