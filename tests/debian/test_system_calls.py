"""What the units forbid is nothing that agent, training, coordinator and broker do, as real processes under strace."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.arm64.fleet import write_shard
from tests.bundles import Zoo
from tests.conftest import require_broker
from tests.real_fleet import RealFleet

ROOT = Path(__file__).parents[2]
UNITS = [ROOT / f"packaging/{name}/{name}.service" for name in ("edge-agent", "fleet-coordinator")]
# SQLite and mosquitto give files to their owner where they run as root, which a service never does.
OF_ROOT = {"chown", "fchown", "setgroups", "setuid", "setgid"}


@cache
def members(group: str) -> frozenset[str]:
    """The system calls of a group of systemd's, such as @system-service."""
    done = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    words = [line.strip() for line in done.stdout.splitlines()[1:]]
    names = [word for word in words if word and not word.startswith("#")]
    return frozenset(inner for name in names for inner in (members(name) if name.startswith("@") else {name}))


def allowed(unit: Path) -> frozenset[str]:
    """What a unit's filter lets through."""
    result: frozenset[str] = frozenset()
    for word in re.findall(r"^SystemCallFilter=(.*)$", unit.read_text(), re.MULTILINE):
        result = result - members(word[1:]) if word.startswith("~") else result | members(word)
    return result


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_fleet_at_work_makes_no_system_call_that_its_units_forbid(zoo: Zoo, tmp_path: Path) -> None:
    require_broker("mosquitto")
    for tool in ("strace", "systemd-analyze"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    bundle = zoo("cnn_with_batch_norm")
    calls = tmp_path / "calls"
    fleet = RealFleet(
        tmp_path,
        "mosquitto",
        rounds=2,
        devices=1,
        training="local_steps = 3",
        make_bundle=lambda place: shutil.copytree(bundle.root, place),
        make_shard=lambda path, seed, examples=40: write_shard(path, bundle, seed, examples),
        enrols=True,
        wrapped=("strace", "-f", "-qq", "-o", str(calls), "--output-append-mode"),
    )
    try:
        fleet.start()
        fleet.finish()
    finally:
        fleet.stop()
    lines = calls.read_text(errors="replace").splitlines()
    made = {found[1] for line in lines if (found := re.match(r"\d+\s+(?:<\.\.\. )?([a-z_0-9]+)[( ]", line))}
    # All of them were seen: starts, what is durable, the connection.
    assert {"execve", "fsync", "connect"} <= made
    for unit in UNITS:
        assert made - allowed(unit) <= OF_ROOT, unit.name
    # MemoryDenyWriteExecute=
    writable = [line for line in lines if re.search(r"PROT_WRITE\|PROT_EXEC|mprotect\(.*PROT_EXEC", line)]
    assert writable == []
