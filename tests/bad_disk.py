"""Looks a device over whose state is on a disk that is full, then read-only: `python -m tests.bad_disk FOLDER`.

It runs in a mount namespace of its own: see test_bad_disks.py.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.agent.outbox_states import checks, configured, edge_agent
from tests.agent.test_cli import GOOD
from tests.full_disk import fill


def main() -> None:
    folder = Path(sys.argv[1])
    state = folder / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(state)], check=True)
    config = configured(folder, (1,), text=GOOD.replace("1883", "1"))
    filler = fill(state, 0)
    said = look(config)
    assert "No space left on device" in said["state folder"]["said"], said
    assert "free disk space" in said["state folder"]["remedy"], said
    assert "the disk is full" in said["disk"]["said"], said
    assert outbox(config) == ["run/1"]
    run = edge_agent("run", "--config", str(config))
    assert (run.returncode, "free disk space" in run.stderr) == (1, True), run.stderr
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(state)], check=True)
    said = look(config)
    assert "Read-only file system" in said["state folder"]["said"], said
    assert outbox(config) == ["run/1"]
    run = edge_agent("run", "--config", str(config))
    assert run.returncode == 1, run.stderr
    assert "free disk space, or check the disk and who may write there" in run.stderr, run.stderr
    out = folder / "diag.tar.gz"
    assert edge_agent("diag", "collect", "--config", str(config), "-o", str(out)).returncode == 0
    print("ok")


def look(config: Path) -> dict[str, dict[str, Any]]:
    done = edge_agent("check", "--config", str(config), "--json")
    assert done.returncode == 1, done.stdout + done.stderr
    return checks(done)


def outbox(config: Path) -> list[str]:
    done = edge_agent("outbox", "list", "--config", str(config), "--json")
    assert done.returncode == 0, done.stderr
    return [row["task"] for row in json.loads(done.stdout)["updates"]]


if __name__ == "__main__":
    main()
