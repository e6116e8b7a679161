"""What a fleet costs: overhead of a round, bytes, memory and accuracy, with real processes on this machine.

    python -m benchmarks.federation            # HAPT where it is at hand, else digits; 2, 5 and 10 agents
    python -m benchmarks.federation --quick --json

Overhead is a round's wall-clock time without the longest local training and without the evaluation. Memory is PSS:
the peak of an agent and its training process over the run, and the agent's at rest after it, when that process has
ended; of several agents the largest. All rounds are run; accuracy is that of the last model on data held out.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress

from benchmarks.harness import Row, options, progress_console, publish
from benchmarks.memory import PeakSampler, pss_mib, with_children_mib
from devices.datasets import PROJECT_ROOT, Dataset, load_dataset
from devices.facts import DeviceFacts, Finished, Listening, RoundCommitted, parse_devices, parse_event
from devices.partition import split, write_shards
from devices.presets import PRESETS, WHOLE
from devices.processes import Child, output_lines, start, stop, wait
from devices.workspace import BUNDLE, Plan, write_agents, write_settings
from protocol.errors import ConfigurationError
from protocol.mqtt import free_port

# An agent lets go of runtime and data this long after its last task; the benchmark then waits a little more.
UNLOAD_S, SETTLE_S = 1.0, 4.0
STALL_S = 300.0


@dataclass(frozen=True, slots=True)
class Measured:
    """What one fleet showed."""

    rounds: tuple[RoundCommitted, ...]
    devices: tuple[DeviceFacts, ...]
    agent_idle_mib: float
    agent_peak_mib: float
    coordinator_mib: float
    broker: str


def main(arguments: Sequence[str] | None = None) -> int:
    parser = options(__doc__ or "")
    parser.add_argument("--data", choices=tuple(PRESETS), help="default: hapt, or digits where hapt is not at hand")
    parser.add_argument("--agents", type=int, nargs="+", help="fleet sizes (default: 2 5 10; quick: 2)")
    parser.add_argument("--rounds", type=int, help="rounds of each fleet (default: 20; quick: 3)")
    parser.add_argument("--codec", default="all/float16")
    parser.add_argument("--downlink", default=WHOLE, help="codec of the model's way to the devices")
    chosen = parser.parse_args(arguments)
    sizes = chosen.agents or ([2] if chosen.quick else [2, 5, 10])
    rounds = chosen.rounds or (3 if chosen.quick else 20)
    name, dataset, notes = _dataset(chosen.data)
    console = progress_console()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="federation-") as folder:
        bundle = Path(folder) / BUNDLE
        _export(name, bundle, console)
        with Progress(console=console) as progress:
            job = progress.add_task("rounds", total=rounds * len(sizes))
            for agents in sizes:
                progress.update(job, description=f"{name}, {agents} agents")
                plan = _plan(name, agents, rounds, chosen.codec, chosen.downlink)
                home = Path(folder) / f"fleet-{agents}"
                _prepare(home, bundle, plan, dataset, chosen.seed)
                measured = _measure(home, plan, lambda: progress.advance(job))
                rows.append(_row(plan, measured))
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="What a fleet costs", notes=notes)
    return 0


def _dataset(wanted: str | None) -> tuple[str, Dataset, list[str]]:
    if wanted is not None:
        return wanted, load_dataset(wanted), []
    try:
        return "hapt", load_dataset("hapt"), []
    except ConfigurationError as error:
        return "digits", load_dataset("digits"), [f"on digits, because hapt is not at hand: {error}"]


def _plan(name: str, agents: int, rounds: int, codec: str, downlink: str = WHOLE) -> Plan:
    return Plan(
        fleet="benchmark",
        data=name,
        devices=tuple(f"device-{i:02d}" for i in range(1, agents + 1)),
        rounds=rounds,
        # Never reached, so that every fleet runs all its rounds and none stops at a lucky one.
        target_accuracy=1.0,
        codec=codec,
        downlink=downlink,
        port=free_port(),
        preset=PRESETS[name],
    )


def _export(name: str, bundle: Path, console: Console) -> None:
    command = (sys.executable, "-m", "export", str(PROJECT_ROOT / PRESETS[name].model), "--out", str(bundle))
    with console.status(f"exporting {PRESETS[name].model}"):
        child = start("export", command, bundle.with_suffix(".log"), folder=PROJECT_ROOT)
        wait(child, lambda: None)


def _prepare(home: Path, bundle: Path, plan: Plan, dataset: Dataset, seed: int) -> None:
    home.mkdir()
    (home / BUNDLE).symlink_to(bundle)
    shares = split(dataset, plan.devices, plan.preset.alpha, np.random.default_rng(seed))
    write_shards(dataset, shares, home)
    write_settings(home, plan, plain=True)
    write_agents(home, plan, tls=False)
    config = home / "coordinator.toml"
    seeded = config.read_text().replace("fleet = ", f"seed = {seed}\nfleet = ", 1)
    config.write_text(seeded)
    for device in plan.devices:
        agent = home / "agents" / device / "agent.toml"
        agent.write_text(agent.read_text() + f"idle_unload_s = {UNLOAD_S}\n")


def _measure(home: Path, plan: Plan, tick: Callable[[], None]) -> Measured:
    children: list[Child] = []

    def launch(name: str, *command: str, pipe: bool = False) -> Child:
        child = start(name, (sys.executable, "-m", *command), home / "logs" / name, folder=PROJECT_ROOT, pipe=pipe)
        children.append(child)
        return child

    try:
        config = str(home / "coordinator.toml")
        coordinator = launch("coordinator", "coordinator", "run", "--config", config, "--json", pipe=True)
        agents = {
            device: launch(device, "edge_agent", "run", "--config", str(home / "agents" / device / "agent.toml"))
            for device in plan.devices
        }
        pids = {name: child.process.pid for name, child in agents.items()}
        rounds: list[RoundCommitted] = []
        broker = ""
        server = {"coordinator": coordinator.process.pid}
        with PeakSampler(server) as of_server, PeakSampler(pids, with_children_mib) as of_agents:
            for line in output_lines(coordinator, tuple(agents.values()), lambda: None, STALL_S):
                event = parse_event(line)
                if isinstance(event, Listening):
                    broker = event.broker
                if isinstance(event, RoundCommitted):
                    rounds.append(event)
                    tick()
                if isinstance(event, Finished):
                    break
        time.sleep(UNLOAD_S + SETTLE_S)
        idle = [mib for pid in pids.values() if (mib := pss_mib(pid)) is not None]
        asked = launch("devices", "coordinator", "devices", "--config", config, "--json", pipe=True)
        devices = parse_devices(b"\n".join(output_lines(asked, (), lambda: None, STALL_S)))
    finally:
        stop(children)
    peaks, coordinator_mib = of_agents.peaks, of_server.peaks["coordinator"]
    return Measured(tuple(rounds), devices, max(idle), max(peaks.values()), coordinator_mib, broker)


def _row(plan: Plan, measured: Measured) -> Row:
    rounds, agents = measured.rounds, len(plan.devices)
    shared = agents * len(rounds)
    return {
        "data": plan.data,
        "agents": agents,
        "rounds": len(rounds),
        "seconds_per_round": round(statistics.median(r.seconds for r in rounds), 3),
        "overhead_s_per_round": round(statistics.median(r.overhead_s or 0.0 for r in rounds), 3),
        "overhead_s_max": round(max(r.overhead_s or 0.0 for r in rounds), 3),
        "bytes_up_per_device_round": sum(r.bytes_up for r in rounds) // shared,
        "bytes_down_per_device_round": sum(r.bytes_down for r in rounds) // shared,
        "bytes_down_per_device_last_round": rounds[-1].bytes_down // agents,
        "agent_idle_pss_mib": round(measured.agent_idle_mib, 1),
        "agent_peak_pss_mib": round(measured.agent_peak_mib, 1),
        "coordinator_pss_mib": round(measured.coordinator_mib, 1),
        "accuracy": rounds[-1].accuracy,
        "codec": plan.codec,
        "downlink": plan.downlink,
        "broker": measured.broker,
    }


if __name__ == "__main__":
    sys.exit(main())
