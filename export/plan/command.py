"""`fleet-export plan`: what a bundle will ask of a device, before it is deployed. Needs no torch."""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edge_agent.runtimes.portable import NAME as PORTABLE
from export.plan.prediction import OPTIMIZERS, Plan, Wanted, predict
from protocol.bundle import open_bundle
from protocol.command import Parser
from protocol.errors import ConfigurationError
from protocol.profile import Profile, load_profile

EPILOG = """\
example: fleet-export plan bundles/digits --device kitchen-pi.json --batch 16 --steps 100 --codec topk:0.05/float16
A profile is made on the device in a few seconds: edge-agent calibrate --out kitchen-pi.json
exit codes: 0 ok, 1 failure, 3 the bundle, the profile or an option is at fault
"""
THIS = "this"
# A calibration takes seconds; a board that swaps takes longer.
CALIBRATION_S = 300
SHOWN_GROUPS = 5
_MIB = 1 << 20


def options_of(words: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="fleet-export plan",
        description="Predicts time, memory, disk and bytes of training a bundle on a device.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="the bundle's folder")
    parser.add_argument("--device", default=THIS, metavar="PROFILE", help="a profile's file, or: this (default)")
    parser.add_argument("--batch", type=int, default=32, help="examples a step (default: 32)")
    parser.add_argument("--steps", type=int, default=1, help="steps a round (default: 1)")
    parser.add_argument("--codec", default="all/float32", help="of updates (default: all/float32)")
    parser.add_argument("--variant", default="full", help="the variant to train (default: full)")
    parser.add_argument("--backend", default=PORTABLE, help=f"default: {PORTABLE}")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="default: sgd, with momentum")
    parser.add_argument("--examples", type=int, default=0, help="in the device's memory (default: 0, not counted)")
    parser.add_argument("--json", action="store_true", help="print every figure as one JSON object")
    return parser.parse_args(list(words))


def run(options: argparse.Namespace) -> int:
    """Predicts and prints; returns the exit code."""
    names = [field.name for field in dataclasses.fields(Wanted)]
    wanted = Wanted(**{name: getattr(options, name) for name in names})
    bundle = open_bundle(options.bundle)
    plan = predict(bundle, device_of(options.device), wanted)
    if options.json:
        print(json.dumps(facts(plan), indent=1))
    else:
        _print(plan)
    return 0


def device_of(name: str) -> Profile:
    """The profile in a file, or that of this machine, calibrated now by an agent's process of its own."""
    if name != THIS:
        return load_profile(Path(name))
    with tempfile.TemporaryDirectory(prefix="calibrate-") as folder:
        out = Path(folder) / "profile.json"
        # The agent's own command, as on any device: nothing of this process counts into its memory.
        command = [sys.executable, "-m", "edge_agent", "calibrate", "--name", THIS, "--out", str(out)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=CALIBRATION_S)
        except subprocess.TimeoutExpired:
            raise ConfigurationError(f"--device: this machine was not calibrated within {CALIBRATION_S} s") from None
        if done.returncode != 0:
            raise ConfigurationError(f"--device: this machine cannot be calibrated: {done.stderr.strip()[-500:]}")
        return load_profile(out)


def facts(plan: Plan) -> dict[str, Any]:
    """Everything for programs: seconds and bytes, with the wishes and the device that they hold for."""
    pace, memory = plan.pace, plan.memory
    return {
        "bundle": {"line": plan.line, "version": plan.version, "nodes": plan.nodes},
        "wanted": dataclasses.asdict(plan.wanted),
        "device": {"name": plan.device.name, "runtime": plan.device.runtime, "threads": plan.device.threads},
        "step_s": pace.step_s,
        "round_s": plan.round_s,
        "time": {"graph_s": pace.graph_s, "update_s": pace.update_s, "call_s": pace.call_s},
        "unknown_operators": pace.unknown,
        "guessed_kinds": list(pace.guessed),
        "groups": [dataclasses.asdict(group) for group in pace.groups],
        "peak_bytes": memory.peak,
        "memory": dataclasses.asdict(memory),
        "disk_bytes": plan.disk.all,
        "disk": dataclasses.asdict(plan.disk),
        "wire": dataclasses.asdict(plan.wire),
    }


def _print(plan: Plan) -> None:
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(_summary(plan))
    console.print(_groups(plan))
    for warning in _warnings(plan):
        console.print(warning, markup=False)


def _summary(plan: Plan) -> Table:
    pace, memory, wire, wanted = plan.pace, plan.memory, plan.wire, plan.wanted
    title = (
        f"{plan.line} version {plan.version}, {wanted.variant}, {wanted.backend}, batches of {wanted.batch}, on "
        f"{plan.device.name} ({plan.device.cpu}, {plan.device.threads} threads)"
    )
    table = Table("what", "predicted", "of which", title=title, title_justify="left")
    table.columns[1].justify = "right"
    table.add_row(
        "a step",
        f"{1e3 * pace.step_s:.2f} ms",
        f"graph of {plan.nodes} nodes {1e3 * pace.graph_s:.2f}, {wanted.optimizer} {1e3 * pace.update_s:.2f}, "
        f"calling {1e3 * pace.call_s:.2f}",
    )
    if wanted.steps > 1:
        table.add_row(f"{wanted.steps} steps", f"{plan.round_s:.2f} s", "training alone")
    table.add_row(
        "peak memory",
        f"{memory.peak / _MIB:.1f} MiB",
        f"agent and runtime {memory.idle / _MIB:.1f}, graph {memory.graph / _MIB:.1f}, tensors "
        f"{memory.tensors / _MIB:.1f} ({memory.alive / _MIB:.1f} needed at once, at a {memory.at}), " + _vectors(plan),
    )
    table.add_row(
        "disk, at most",
        f"{plan.disk.all:,} bytes",
        f"bundle {plan.disk.bundle:,}, model {plan.disk.model:,}, update {plan.disk.update:,}, residuals "
        f"{plan.disk.residual:,}",
    )
    table.add_row(
        "down, once", f"{wire.bundle:,} bytes", f"manifest, {wanted.backend}'s graphs, torch's recorded steps"
    )
    table.add_row("down, a round", f"{wire.model:,} bytes", "the model, dense float32")
    table.add_row("up, a round", f"{wire.update:,} bytes", f"{wanted.codec} of normal values; at most {wire.most:,}")
    return table


def _vectors(plan: Plan) -> str:
    memory = plan.memory
    data = f", data {memory.data / _MIB:.1f}" if memory.data else "; data not counted"
    if memory.packing > memory.vectors + memory.batch:
        return f"packing the update {memory.packing / _MIB:.1f}{data}"
    return f"model, gradient and optimiser {memory.vectors / _MIB:.1f}, batch {memory.batch / _MIB:.1f}{data}"


def _groups(plan: Plan) -> Table:
    table = Table("operators", "of", "on", "ms", "share", title="where the time goes", title_justify="left")
    for column in (0, 3, 4):
        table.columns[column].justify = "right"
    for group in plan.pace.groups[:SHOWN_GROUPS]:
        share = group.seconds / plan.pace.step_s
        table.add_row(str(group.operators), group.kind, group.shapes, f"{1e3 * group.seconds:.2f}", f"{share:.0%}")
    return table


def _warnings(plan: Plan) -> list[str]:
    pace, device = plan.pace, plan.device
    warnings = []
    if pace.unknown:
        warnings.append(f"{pace.unknown} operators have no known shape and are not counted: expect more of all")
    if pace.guessed:
        warnings.append(f"counted as copies, for want of a price: {', '.join(pace.guessed)}")
    if plan.memory.peak > device.memory_mib * _MIB:
        warnings.append(f"{device.name} has {device.memory_mib} MiB: the peak does not fit; use a smaller batch")
    return warnings
