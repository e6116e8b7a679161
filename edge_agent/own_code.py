"""Commands of this agent's own code, for processes of its own: never what lies in the folder that it was started in."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import edge_agent


def own_command(module: str, *words: str) -> tuple[str, ...]:
    """Runs a module of ours with the same interpreter. -P: who may write to the current folder is not who we are, and
    commands are given as root."""
    return (sys.executable, "-P", "-m", module, *words)


def own_environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment, with the place of our code where Python looks: in a source tree only -P would not find it."""
    own = str(Path(edge_agent.__file__).resolve().parent.parent)
    # No empty entry: that is the current folder again.
    modules = [path for path in (*given.get("PYTHONPATH", "").split(os.pathsep), own) if path]
    return {**given, "PYTHONPATH": os.pathsep.join(modules), "ORT_DISABLE_TELEMETRY": "1"}
