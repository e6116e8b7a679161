"""`fleet-emulate up --detach`: the same command in the background, watched until its fleet runs."""

import argparse
import json
import subprocess
import sys
import time

from devices.conductor import folder
from devices.conductor.control import ask
from devices.conductor.planning import checked_plan
from devices.processes import last_lines
from protocol.errors import UnreachableError

_POLL_S = 0.2


def begin(options: argparse.Namespace) -> int:
    """Its exit code where it ends before it runs, and 0 once it does. Its words are in a file beside the index."""
    plan, place = checked_plan(options)
    words = [sys.executable, "-m", "devices", "up", str(options.file), "--out", str(place), "--json"]
    for name in ("engine", "rounds"):
        if getattr(options, name) is not None:
            words += [f"--{name}", str(getattr(options, name))]
    words += ["--keep"] if options.keep else []
    log = folder.index_folder() / f"{plan.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as sink:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    while child.poll() is None:
        try:
            if ask(place, {"do": "status"})["running"]:
                said = {"fleet": plan.name, "folder": str(place), "log": str(log), "pid": child.pid}
                print(json.dumps(said) if options.json else f"fleet {plan.name} runs in {place}; fleet-emulate ps")
                return 0
        except UnreachableError:
            # Not yet.
            pass
        time.sleep(_POLL_S)
    print(last_lines(log), file=sys.stderr)
    return child.returncode
