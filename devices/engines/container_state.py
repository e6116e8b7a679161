"""How a container is, from what its engine says and what the kernel has of its control group."""

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from devices.engines.cgroups import Cgroup, cgroup_of
from devices.engines.engine import Condition
from devices.engines.kernel_log import ran_out_of_memory
from devices.engines.sessions import Session

STATES: dict[str, Literal["created", "running", "paused", "ended"]] = {
    "created": "created",
    "configured": "created",
    "initialized": "created",
    "running": "running",
    "stopping": "running",
    "restarting": "running",
    "paused": "paused",
    "stopped": "ended",
    "exited": "ended",
    "dead": "ended",
    "removing": "ended",
}
# The exit code of what SIGKILL ended, as the kernel does for want of memory.
_KILLED = 137


@dataclass(frozen=True, slots=True)
class Running:
    """A container that was seen running: to look at it again without asking the engine, which takes its time."""

    session: Session
    cgroup: Cgroup
    started_at: float

    def condition(self) -> Condition:
        group = self.cgroup
        killed = group.out_of_memory_kills() > 0
        cpu_s = group.cpu_s() or 0.0
        return Condition("running", None, killed, self.started_at, cpu_s, group.used_mib(), group.peak_mib())


def running(found: dict[str, Any]) -> Running | None:
    """A container that runs by what the engine says; None if it has ended meanwhile."""
    pid = int(found["State"]["Pid"])
    session = Session.led_by(pid) if pid else None
    return None if session is None else Running(session, cgroup_of(pid, str(found["Id"])), started_at(found))


def ended(found: dict[str, Any], last: Condition) -> Condition:
    """How a container ended, with what was seen of it last."""
    state = found["State"]
    code = int(state["ExitCode"])
    here = bool(state.get("OOMKilled")) or (code == _KILLED and ran_out_of_memory(str(found["Id"])))
    limit = int(found["HostConfig"].get("Memory") or 0)
    # Whoever runs out of memory has used all of it.
    peak = limit / (1 << 20) if here and limit else last.peak_mib
    killed = here or last.out_of_memory
    return replace(last, state="ended", exit_code=code, out_of_memory=killed, memory_mib=None, peak_mib=peak)


def started_at(found: dict[str, Any]) -> float:
    # Go writes nanoseconds and a zone; whole seconds and a zone are enough for us.
    text = re.sub(r"\.\d+", "", str(found["State"]["StartedAt"]))
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


def labels(found: dict[str, Any]) -> dict[str, str]:
    return (found.get("Config") or {}).get("Labels") or {}
