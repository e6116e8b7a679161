"""What a calibration says of the machine, and the profile put together."""

import os
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from edge_agent.calibration import clock
from edge_agent.calibration.fit import fit
from edge_agent.calibration.probes import TOUCHED, Probe
from edge_agent.runtimes import onnx_session
from edge_agent.runtimes.backends import runtime_name
from edge_agent.runtimes.work import UNITS
from protocol.profile import FORMAT, Profile

# Long enough that a graph's own memory stands out against what malloc rounds up to.
NODES = 1000
_MIB = 1 << 20


def calibrate(name: str, threads: int = 1, between: clock.Take | None = None) -> Profile:
    """Measures this machine, which takes a few seconds. In a process of its own, whose memory is the agent's and no
    other's. between: called now and then, for comparisons on a machine that changes its pace."""
    idle = _idle_bytes(threads)
    node = _node_bytes(threads)
    works, seconds = clock.operators(threads, between)
    prices, error = fit(works, seconds)
    updates = clock.updates(threads)
    # The agent's own arithmetic around a call of the runtime belongs to the call: a step has one.
    prices = {unit: price for unit, price in prices.items() if unit in UNITS}
    prices = {**prices, "run": updates["step"], "sgd": updates["sgd"], "adamw": updates["adamw"]}
    return Profile(
        format=FORMAT,
        name=name,
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        machine=platform.machine(),
        cpu=_cpu(),
        cores=os.cpu_count() or 1,
        memory_mib=_memory_mib(),
        runtime=runtime_name(),
        threads=threads,
        idle_mib=round(idle / _MIB, 1),
        node_bytes=float(round(node)),
        seconds={unit: float(f"{price:.4g}") for unit, price in sorted(prices.items())},
        error=round(error, 3),
    )


def _idle_bytes(threads: int) -> int:
    """This process with all of the agent loaded and every kind of operator used once."""
    # Imported for its size alone.
    import edge_agent.daemon  # noqa: F401

    rng = np.random.default_rng(0)
    for probe in TOUCHED:
        clock.runner(probe, threads, rng)()
    return _resident()


def _node_bytes(threads: int) -> float:
    """What a node of a loaded graph takes."""
    before = _resident()
    graph = Probe("Add", ((4,), (4,)), (4,), times=NODES).graph()
    session = onnx_session.session_of(graph, "probe", threads)
    grown = _resident() - before
    del session
    return max(0.0, grown / NODES)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu() -> str:
    """As Linux names it: x86 by its model, ARM boards by what the device tree says."""
    facts: Mapping[str, str] = dict(_facts(Path("/proc/cpuinfo")))
    model = Path("/proc/device-tree/model")
    return facts.get("model name") or (model.read_text().strip("\x00\n") if model.is_file() else platform.machine())


def _memory_mib() -> int:
    return int(dict(_facts(Path("/proc/meminfo")))["MemTotal"].split()[0]) // 1024


def _facts(path: Path) -> list[tuple[str, str]]:
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return [(key.strip(), value.strip()) for key, _, value in lines]
