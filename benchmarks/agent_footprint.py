"""What a running agent takes of a device: memory and wake-ups, at rest and while it trains the two-convolution network.

A real coordinator and a real broker on loopback, one agent with its defaults, two rounds. Memory is proportional set
size. While training, `pss_mib` is the most of agent and training process at one moment of the second round, sampled
every 50 ms, and `start_peak_mib` that of the first, in which the process starts and the bundle is fetched; `agent_mib`
and `child_mib` are the most of each alone. At rest it is read once, after the training process has ended.
`wakeups_per_s` are voluntary context switches of all threads of the agent, as the kernel counts them: at rest over a
time in which nothing reaches it but what the broker's keep-alive brings, while training over the second round, with all
of its messages.
"""

import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Row
from benchmarks.memory import children_of
from devices.datasets import PROJECT_ROOT
from devices.facts import Listening, RoundCommitted, parse_event
from devices.processes import Child, output_lines, start, stop
from protocol.errors import SparsefleetError
from protocol.mqtt import free_port

# Of a round: long enough for memory to be what it stays.
STEPS, QUICK_STEPS = 1500, 100
# A keep-alive is every minute, so that two of them fall into the time that wake-ups are counted over.
QUIET_S, QUICK_QUIET_S = 120.0, 5.0
UNLOAD_S, SETTLE_S = 1.0, 3.0
BATCH = 32
STALL_S = 300.0
SAMPLE_S = 0.05
_FIELDS = ("Pss", "Private_Clean", "Private_Dirty")

COORDINATOR = """\
fleet = "footprint"
state = "coordinator"
bundle = "{bundle}"
[broker]
url = "auto"
port = {port}
plain = "loopback"
[trust]
port = 0
[rounds]
count = 2
devices = 1
deadline_s = 600.0
[training]
batch_size = {batch}
local_steps = {steps}
learning_rate = 0.01
"""
AGENT = """\
device = "device-01"
fleet = "footprint"
state = "state"
[broker]
url = "mqtt://127.0.0.1:{port}"
[data]
path = "{data}"
[training]
idle_unload_s = {unload_s}
"""


@dataclass(frozen=True, slots=True)
class Taken:
    """MiB of one process: proportional, and its own alone."""

    pss: float
    uss: float


@dataclass(slots=True)
class Samples:
    """The most that was seen of agent and training process, each alone and both at one moment."""

    agent: float = 0.0
    child: float = 0.0
    together: float = 0.0
    threads: int = 0

    def take(self, pid: int) -> None:
        """Looks once."""
        agent, children = taken(pid), [found for child in children_of(pid) if (found := taken(child)) is not None]
        if agent is None:
            return
        child = sum(found.pss for found in children)
        self.agent, self.child = max(self.agent, agent.pss), max(self.child, child)
        self.together = max(self.together, agent.pss + child)
        self.threads = max(self.threads, threads_of(pid))


class Sampler:
    """Looks at an agent every SAMPLE_S, until it is closed."""

    def __init__(self, pid: int) -> None:
        self._pid, self._samples, self._stopped = pid, Samples(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def next(self) -> Samples:
        """What was seen since the last call."""
        seen, self._samples = self._samples, Samples()
        return seen

    def close(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            self._samples.take(self._pid)


def taken(pid: int) -> Taken | None:
    """Of a process now; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    found = {name: int(value) / 1024 for name, value in re.findall(r"(?m)^(\w+):\s+(\d+) kB", text) if name in _FIELDS}
    if "Pss" not in found:
        return None
    return Taken(found["Pss"], found["Private_Clean"] + found["Private_Dirty"])


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def wakeups(pid: int) -> int:
    """Voluntary context switches of all its threads so far."""
    said = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(re.findall(r"(?m)^voluntary_ctxt_switches:\s+(\d+)", text)[0]) for text in said)


def measure(name: str, python: Path, bundle: Path, folder: Path, *, quick: bool = False) -> list[Row]:
    """Two rows, at rest and training, of the agent that is installed for an interpreter. Its data lie beside the
    bundle. Raises SparsefleetError when the fleet does not do its rounds."""
    folder.mkdir()
    port, steps = free_port(), QUICK_STEPS if quick else STEPS
    (folder / "coordinator.toml").write_text(COORDINATOR.format(batch=BATCH, bundle=bundle, port=port, steps=steps))
    settings = AGENT.format(port=port, data=bundle.with_suffix(".npz"), unload_s=UNLOAD_S)
    (folder / "agent.toml").write_text(settings)
    children: list[Child] = []
    try:
        config = str(folder / "coordinator.toml")
        command = (sys.executable, "-m", "coordinator", "run", "--config", config, "--json")
        children.append(start("coordinator", command, folder / "coordinator.log", folder=PROJECT_ROOT, pipe=True))
        # An agent that was installed must not be this source tree's; our own interpreter has no other.
        where = PROJECT_ROOT if python == Path(sys.executable) else folder
        runs = (str(python), "-m", "edge_agent", "run", "--config", str(folder / "agent.toml"))
        children.append(start("agent", runs, folder / "agent.log", folder=where))
        training = _training(*children)
        idle = _at_rest(children[1].process.pid, QUICK_QUIET_S if quick else QUIET_S)
    finally:
        stop(children)
    return [{"environment": name, "state": state, **row} for state, row in (("idle", idle), ("training", training))]


def _training(coordinator: Child, agent: Child) -> Row:
    """Until both rounds are over."""
    pid = agent.process.pid
    sampler = Sampler(pid)
    first, before, began, broker = Samples(), 0, 0.0, ""
    try:
        for line in output_lines(coordinator, (agent,), lambda: None, STALL_S):
            event = parse_event(line)
            match event:
                case Listening():
                    broker = event.broker
                case RoundCommitted(round=1):
                    first, before, began = sampler.next(), wakeups(pid), time.monotonic()
                case RoundCommitted():
                    second, seconds = sampler.next(), time.monotonic() - began
                    return {
                        "pss_mib": round(second.together, 1),
                        "agent_mib": round(second.agent, 1),
                        "child_mib": round(second.child, 1),
                        "start_peak_mib": round(first.together, 1),
                        "threads": second.threads,
                        "wakeups_per_s": round((wakeups(pid) - before) / seconds, 3),
                        "seconds": round(seconds, 1),
                        "broker": broker,
                    }
                case _:
                    pass
    finally:
        sampler.close()
    raise SparsefleetError("the coordinator ended before its rounds")


def _at_rest(pid: int, quiet_s: float) -> Row:
    """Once the training process has ended."""
    give_up = time.monotonic() + STALL_S
    while children_of(pid):
        if time.monotonic() > give_up:
            raise SparsefleetError(f"the training process is still there after {STALL_S:.0f} s")
        time.sleep(SAMPLE_S)
    time.sleep(SETTLE_S)
    before, began = wakeups(pid), time.monotonic()
    time.sleep(quiet_s)
    seconds, count = time.monotonic() - began, wakeups(pid) - before
    found = taken(pid)
    if found is None:
        raise SparsefleetError("the agent ended while it was at rest")
    return {
        "pss_mib": round(found.pss, 1),
        "agent_mib": round(found.pss, 1),
        "agent_uss_mib": round(found.uss, 1),
        "child_mib": 0.0,
        "threads": threads_of(pid),
        "wakeups_per_s": round(count / seconds, 3),
        "seconds": round(seconds, 1),
    }
