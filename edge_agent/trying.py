"""Starts what a check may die of, and makes a finding of its death."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from edge_agent.findings import Finding
from edge_agent.own_code import own_command, own_environment

CHECKS = ("runtime", "data", "backend", "parity", "step")
# Loading the data and one step, on a slow board.
LIMIT_S = 300.0
# Of what a dead child said; the end has the reason.
_LAST = 400

_DEATHS = {
    signal.SIGILL: "install a runtime that is built for this processor (onnxruntime 1.21.0 is not for Cortex-A72)",
    signal.SIGKILL: "most likely the memory was used up: a smaller variant, batch or data, or raise MemoryMax",
    signal.SIGSEGV: "install another onnxruntime, and tell its makers",
}


def tried(config: Path | None, backend: str | None) -> dict[str, Finding]:
    """What edge_agent.training_check finds, and of what it died, if it did. config: without one, the runtime alone."""
    options = [*(("--config", str(config)) if config else ()), *(("--backend", backend) if backend else ())]
    command = own_command("edge_agent.training_check", *options)
    try:
        done = subprocess.run(
            command,
            env=own_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        said = Finding("error", f"no end within {LIMIT_S:.0f} s", "less data, or edge-agent train to see where")
        return _filled({"step": said}, "not reached")
    except OSError as error:
        return _filled(
            {"runtime": Finding("error", f"{sys.executable}: {error}", "reinstall the agent")}, "not reached"
        )
    found, begun = _read(done.stdout)
    if done.returncode != 0:
        found[begun or "runtime"] = _death(done.returncode, done.stderr)
    return _filled(found, "not reached")


def _read(output: str) -> tuple[dict[str, Finding], str]:
    """The findings, and what was begun last."""
    found, begun = {}, ""
    for line in output.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            # Half a line, of a process that died.
            continue
        if "begun" in said:
            begun = said["begun"]
        else:
            found[said["found"]] = Finding(
                said["status"], said["said"], said["remedy"], (), said["facts"], said["exit_code"]
            )
    return found, begun


def _death(code: int, errors: str) -> Finding:
    last = " ".join(errors.split())[-_LAST:]
    if code >= 0:
        return Finding("error", f"ended with exit code {code}: {last or 'without a word'}", "see what it says")
    try:
        number = signal.Signals(-code)
    except ValueError:
        return Finding("error", f"was killed by signal {-code}", "run it again")
    remedy = _DEATHS.get(number, "run it again; edge-agent train does the same by hand")
    return Finding("error", f"was killed by {number.name} ({signal.strsignal(number)})", remedy)


def _filled(found: dict[str, Finding], why: str) -> dict[str, Finding]:
    return {name: found.get(name, Finding("skipped", why)) for name in CHECKS}
