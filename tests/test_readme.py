"""The README's worked examples, run as they stand: what a newcomer types must work."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from devices.processes import start, stop
from protocol.mqtt import free_port
from tests.waiting import until

ROOT = Path(__file__).parent.parent
MODULES = {
    "fleet-export": "export",
    "edge-agent": "edge_agent",
    "fleet-coordinator": "coordinator",
    "fleet-emulate": "devices",
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """Every line of the README's shell blocks that calls this command, without its comment."""
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith(name + " ")]
    return [shlex.split(line, comments=True) for line in lines]


def run(command: list[str], folder: Path) -> str:
    words, out = command, None
    if ">" in words:
        out = folder / words[words.index(">") + 1]
        words = words[: words.index(">")]
    done = subprocess.run(
        [sys.executable, "-m", MODULES[words[0]], *words[1:]],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/usr/sbin:/bin"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    if out is not None:
        out.write_text(done.stdout)
    return done.stdout


def on_a_free_port(*configs: Path) -> None:
    port = free_port()
    for config in configs:
        config.write_text(config.read_text().replace("1883", str(port)))


@pytest.mark.real
@pytest.mark.slow
def test_the_four_jobs_run_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "my_model.py").write_text(blocks("python")[0])
    rng = np.random.default_rng(0)
    x, y = rng.random((64, 1, 8, 8), np.float32), rng.integers(0, 10, 64)
    np.savez(tmp_path / "shard.npz", x=x, y=y)

    for command in commands("fleet-export"):
        run(command, tmp_path)
    assert (tmp_path / "bundle" / "manifest.json").exists()

    agent, coordinator = commands("edge-agent"), commands("fleet-coordinator")
    for command in agent + coordinator:
        if "sample" in command:
            run(command, tmp_path)
        if command[1] in ("train", "check"):
            assert "step" in run(command, tmp_path)
    on_a_free_port(tmp_path / "agent.toml", tmp_path / "coordinator.toml")

    children = []
    try:
        for command in (next(c for c in coordinator if c[1] == "run"), next(c for c in agent if c[1] == "run")):
            words = (sys.executable, "-m", MODULES[command[0]], *command[1:])
            children.append(start(command[0], words, tmp_path / f"{command[0]}.log", folder=tmp_path))
        log = tmp_path / "edge-agent.log"
        until(lambda: log.exists() and "connected broker" in log.read_text())
        for command in coordinator:
            if command[1] in ("status", "export-model"):
                run(command, tmp_path)
    finally:
        stop(children)
    assert (tmp_path / "trained.onnx").stat().st_size > 0


def test_every_command_in_the_readme_is_one_of_ours() -> None:
    told = [line.split()[0] for block in blocks("sh") for line in block.splitlines() if line.strip()]
    assert set(told) == {*MODULES, "make"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_command_has_help_with_an_example(name: str) -> None:
    said = run([name, "--help"], ROOT)
    assert "example" in said
    assert f"{name} " in said
