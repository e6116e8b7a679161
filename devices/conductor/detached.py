"""`fleet-emulate up --detach`: the same command in the background, watched until its fleet runs."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from devices.conductor import folder
from devices.conductor.control import ask
from devices.conductor.planning import check_name, checked_plan
from devices.processes import last_lines
from protocol.errors import ConfigurationError, UnreachableError

_POLL_S = 0.2


def begin(options: argparse.Namespace) -> int:
    """Its exit code where it ends before it runs, and 0 once it does. Its words are in a file beside the index."""
    if options.compose is not None:
        raise ConfigurationError("--detach: has nothing to do with --compose, which starts nothing; leave one out")
    plan, place = checked_plan(options)
    # Before its log, which is that fleet's, is begun anew.
    check_name(plan)
    words = [sys.executable, "-m", "devices", "up", str(options.file), "--out", str(place), "--json"]
    for name in ("engine", "rounds", "at_most"):
        if getattr(options, name) is not None:
            words += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
    words += ["--keep"] if options.keep else []
    log = folder.index_folder() / f"{plan.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while child.poll() is None:
            if _runs(place, child.pid):
                said = {"fleet": plan.name, "folder": str(place), "log": str(log), "pid": child.pid}
                print(json.dumps(said) if options.json else f"fleet {plan.name} runs in {place}; fleet-emulate ps")
                return 0
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        # Whoever gives up waiting does not want it to come up unseen.
        child.terminate()
        child.wait()
        raise
    print(last_lines(log), file=sys.stderr)
    # It may be over before anybody saw it run.
    return child.returncode if child.returncode >= 0 else 1


def _runs(place: Path, pid: int) -> bool:
    try:
        said = ask(place, {"do": "status"})
    except UnreachableError:
        # Not yet.
        return False
    return bool(said["running"]) and said.get("pid") == pid
