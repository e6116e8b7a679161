"""The wheel on the next Debian, with its Python: installed in a venv from wheels alone, checked, and trained with."""

import json
import subprocess
import sys
from pathlib import Path

from tests.debian.boards import ROOT, newer_board

# Of Debian 13. No Debian has 3.12; tests/test_wheel.py takes it where it is installed.
PYTHON = "3.13"
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17)]
LIMIT_MIB = 200
COMMAND = "/venv/bin/edge-agent"


def travel(cache: Path, folder: Path, bundle: Path, device: Path) -> str:
    """Asserts each step; returns what was found, in a sentence. folder: for wheels. device: with its shard.npz."""
    _download(folder)
    with newer_board(cache, {"/wheels": folder, "/bundle": bundle, "/device": device}) as there:
        assert there.run("sh", "-c", "command -v cc gcc").returncode != 0
        there.must("python3", "-m", "venv", "/venv")
        install = ("pip", "install", "--quiet", "--no-index", "--find-links", "/wheels", "sparsefleet[agent]")
        there.must("/venv/bin/python", "-m", *install)
        names = there.must("/venv/bin/python", "-m", "pip", "list", "--format=freeze")
        assert "torch" not in names
        checked = json.loads(there.must(COMMAND, "check", "--bundle", "/bundle", "--json"))
        parity = checked["checks"]["parity"]
        assert parity["status"] == "ok", parity
        words = ("--bundle", "/bundle", "--data", "/device/shard.npz", "--steps", "20", "--batch-size", "8", "--json")
        trained = json.loads(there.must(COMMAND, "train", *words))
        assert trained["steps"] == 20
        version = there.must("/venv/bin/python", "--version").strip()
        assert version.startswith(f"Python {PYTHON}."), version
        found_mib = int(there.must("du", "-sm", "/venv").split()[0])
        assert found_mib <= LIMIT_MIB, f"{found_mib} MiB are over {LIMIT_MIB}"
        runtime = next(line for line in names.splitlines() if line.startswith("onnxruntime"))
        return f"{version}, {runtime}: checked against torch, trained; {found_mib} MiB"


def _download(folder: Path) -> None:
    """Our wheel, and what it needs there: the machine has an index at hand, and the board need not."""
    build = [sys.executable, str(ROOT / "packaging/build_wheel.py"), "--out", str(folder)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("sparsefleet-*.whl")
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    words = ["--only-binary=:all:", "--python-version", PYTHON, *platforms, "--dest", str(folder), f"{wheel}[agent]"]
    done = subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
