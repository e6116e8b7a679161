"""The README's worked examples, run as they stand: what a newcomer types must work."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from devices.processes import Child, start, stop
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


def on_free_ports(config: Path) -> int:
    """Has a fleet listen where nobody does, and returns the port where devices enrol."""
    enrolment = free_port()
    text = config.read_text().replace("port = 8883", f"port = {free_port()}")
    config.write_text(text.replace("port = 8884", f"port = {enrolment}"))
    return enrolment


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
    port = on_free_ports(tmp_path / "coordinator.toml")

    def launch(command: list[str]) -> Path:
        words = (sys.executable, "-m", MODULES[command[0]], *command[1:])
        children.append(start(command[0], words, tmp_path / f"{command[0]}.log", folder=tmp_path))
        return children[-1].log

    children: list[Child] = []
    try:
        log = launch(next(c for c in coordinator if c[1] == "run"))
        until(lambda: log.exists() and "listening" in log.read_text())
        token = run(next(c for c in coordinator if c[1] == "token"), tmp_path).strip()
        known = {"server:8884": f"127.0.0.1:{port}", "TOKEN": token}
        run([known.get(word, word) for word in next(c for c in agent if c[1] == "enroll")], tmp_path)
        log = launch(next(c for c in agent if c[1] == "run"))
        until(lambda: log.exists() and "connected broker" in log.read_text())
        for command in coordinator:
            if command[1] in ("status", "export-model"):
                run(command, tmp_path)
    finally:
        stop(children)
    assert (tmp_path / "trained.onnx").stat().st_size > 0


def test_every_command_in_the_readme_is_one_of_ours() -> None:
    told = [
        line.removeprefix("sudo ").split()[0] for block in blocks("sh") for line in block.splitlines() if line.strip()
    ]
    assert set(told) == {*MODULES, "make"}


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_command_has_help_with_an_example(name: str) -> None:
    said = run([name, "--help"], ROOT)
    assert "example" in said
    assert f"{name} " in said
