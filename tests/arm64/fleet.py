"""A federated round of two devices: one on this machine, one in an arm64 container; coordinator and broker are here."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from coordinator.broker import find_mosquitto
from protocol.bundle import Bundle, open_bundle
from tests.arm64.machine import Container, identity_file
from tests.real_fleet import RealFleet

HERE, THERE = "device-00", "device-01"
# What the container's agent is told apart by in its own log, first line.
RUN = ("sh", "-c", "uname -m; exec python3 -m edge_agent run --config /device/agent.toml")


def federated_round(container: Container, source: Path, folder: Path) -> Mapping[str, str]:
    """Runs one round on the bundle in `source`, to facts for a log. Raises AssertionError with the fleet's logs."""
    bundle = open_bundle(source)
    fleet = RealFleet(
        folder,
        "mosquitto" if find_mosquitto() else "embedded",
        rounds=1,
        devices=2,
        training="local_steps = 5",
        make_bundle=lambda place: shutil.copytree(source, place),
        make_shard=lambda path, seed, examples=40: write_shard(path, bundle, seed, examples),
    )
    there = replace(container, mounts={**container.mounts, "/device": (folder / THERE, True)})
    with identity_file() as identity:
        try:
            fleet.start_coordinator()
            fleet.start_agent(HERE)
            fleet.start_agent_elsewhere(THERE, there.command(RUN, identity))
            fleet.finish()
            return _facts(fleet)
        finally:
            fleet.stop()


def _facts(fleet: RealFleet) -> Mapping[str, str]:
    accepted = {row["device"]: row["accepted"] for row in fleet.ask("devices")["devices"]}
    folded = fleet.ask("rounds")["rounds"][-1]["devices"]
    assert (accepted, folded) == ({HERE: 1, THERE: 1}, 2), f"accepted {accepted}, {folded} in the fold"
    logs = {name: child.log.read_text() for name, child in fleet.agents.items()}
    machine = logs[THERE].splitlines()[0]
    assert machine == "aarch64", f"{THERE} ran on {machine}"
    backends = {name: match[1] for name, log in logs.items() if (match := re.search(r"backend=(\S+)", log))}
    assert backends == {HERE: "portable", THERE: "portable"}, f"trained by {backends}"
    return {
        "in the fold": f"{HERE} (here), {THERE} ({machine})",
        "backends": ", ".join(f"{name} {backend}" for name, backend in backends.items()),
    }


def write_shard(path: Path, bundle: Bundle, seed: int, examples: int) -> None:
    """Examples for a bundle of one input and class targets: whether they teach anything is not the point."""
    (x,), (y,) = bundle.manifest.inputs, bundle.manifest.targets
    assert y.classes is not None
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(examples, *x.shape)).astype(np.float32)
    np.savez(path, x=inputs, y=rng.integers(0, y.classes, (examples, *y.shape)))
