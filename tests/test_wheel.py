"""The wheel on a device: `pip install "sparsefleet[agent]"` with each Python, without a compiler, without torch."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import write_bundle, write_shard

ROOT = Path(__file__).parent.parent
LIMIT_MIB = 200


def interpreters() -> list[str]:
    """This Python, and the other versions that we are for, where they are installed: Debian 12 has 3.11 alone."""
    found = [sys.executable]
    for version in ("3.11", "3.12", "3.13"):
        path = shutil.which(f"python{version}")
        if path is None or version == ".".join(map(str, sys.version_info[:2])):
            continue
        if subprocess.run([path, "-c", "import ensurepip"], capture_output=True).returncode == 0:
            found.append(path)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run([sys.executable, str(ROOT / "packaging/build_wheel.py"), "--out", str(out)], ROOT)
    (found,) = out.glob("sparsefleet-*.whl")
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("python", interpreters(), ids=lambda path: Path(path).name)
def test_the_agent_installs_from_wheels_alone_trains_and_is_small(python: str, wheel: Path, tmp_path: Path) -> None:
    run([python, "-m", "venv", str(tmp_path / "venv")], tmp_path)
    binaries = tmp_path / "venv" / "bin"
    # Wheels alone: what would be compiled is refused, so no compiler is asked for.
    install = ["pip", "install", "--quiet", "--only-binary=:all:", "--disable-pip-version-check", f"{wheel}[agent]"]
    run([str(binaries / "python"), "-m", *install], tmp_path)
    write_bundle(tmp_path / "bundle")
    write_shard(tmp_path / "shard.npz", seed=1)
    words = ("train", "--bundle", "bundle", "--data", "shard.npz", "--steps", "3", "--batch-size", "8")
    assert "step" in run([str(binaries / "edge-agent"), *words], tmp_path)
    names = run([str(binaries / "python"), "-m", "pip", "list", "--format=freeze"], tmp_path)
    assert "onnxruntime" in names
    assert "torch" not in names
    found_mib = sum(p.lstat().st_size for p in (tmp_path / "venv").rglob("*") if p.is_file()) / (1 << 20)
    assert found_mib <= LIMIT_MIB, f"{found_mib:.0f} MiB are over {LIMIT_MIB}"


def run(command: list[str], folder: Path) -> str:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder)}
    # What this machine's pip needs to reach an index.
    environment |= {name: value for name, value in os.environ.items() if name.startswith("PIP_") or "_proxy" in name}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
