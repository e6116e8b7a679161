"""A state folder with updates that wait, and a configuration of it, for tests of the operator's commands."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edge_agent.store import AgentStore
from tests.agent.test_cli import GOOD, write
from tests.agent.test_store import LAYOUT, offer

ROOT = Path(__file__).parents[2]


def configured(folder: Path, rounds: tuple[int, ...] = (), *, text: str = GOOD) -> Path:
    """A configuration in this folder, and in its state an update of each of the rounds."""
    config = write(folder, text)
    store = AgentStore(folder / "state", 1 << 20)
    for round_ in rounds:
        kept = offer(store, f"payload of {round_}".encode(), round_)
        store.keep_update(kept, LAYOUT, np.array([1.0, 2.0], np.float32))
    store.close()
    return config


def edge_agent(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, with more variables."""
    return _run([sys.executable, "-m", "edge_agent", *arguments], environ)


def edge_agent_by_clock(offset_s: float, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, whose wall clock is off by so many seconds."""
    file = folder / "offset"
    file.write_text(str(offset_s))
    return _run([sys.executable, "-m", "tests.clocked", str(file), sys.executable, "-m", "edge_agent", *arguments], {})


def checks(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    """What `check --json` printed, by check."""
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)["checks"]
    return found


def _run(command: list[str], environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_AGENT_")} | environ
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [environ.get("PYTHONPATH"), str(ROOT)]))
    return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=100)
