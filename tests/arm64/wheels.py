"""What is installed on the arm64 root: our wheel with the agent's extras and what the agent's tests need, as wheels."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from devices.images.roots import PYTHON
from tests.arm64.machine import MachineError

ROOT = Path(__file__).parents[2]
# Newest is no choice here: 1.32.0 hangs or crashes under QEMU's user-mode emulation, which says nothing of boards.
# This one imports and trains under it.
ONNXRUNTIME = "onnxruntime==1.23.2"
# Of the extras for development, what the tests that run there import: graphs and parameter files to read.
FOR_TESTS = ("hypothesis", "onnx", "packaging", "pytest", "pytest-timeout", "safetensors")
# pip takes for another machine only what is named here; that root's glibc is newer than either.
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_17_aarch64")


def requirements() -> tuple[str, ...]:
    """Every requirement of the agent and of its tests, as pyproject.toml has them, and the one pin of the emulation."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for_tests = [line for line in (*extras["dev"], *extras["export"]) if _name(line) in FOR_TESTS]
    return (*project["dependencies"], *extras["agent"], *extras["images"], *for_tests, ONNXRUNTIME)


def third_party(cache: Path) -> Path:
    """A folder of everything but our own wheel, kept under `cache` until the requirements change."""
    wanted = requirements()
    folder = cache / f"arm64-site-{hashlib.sha256(repr((PYTHON, PLATFORMS, wanted)).encode()).hexdigest()[:16]}"
    if not folder.exists():
        half = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
            choice = ("--only-binary=:all:", "--python-version", PYTHON, *platforms)
            _pip("install", "--target", str(half), *choice, *wanted)
            half.rename(folder)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return folder


def site(cache: Path, folder: Path) -> Path:
    """A folder for this run with everything in it, our own wheel built from this source. Inside `cache`."""
    shutil.copytree(third_party(cache), folder, copy_function=os.link)
    _pip("install", "--no-deps", "--target", str(folder), str(_wheel(folder.with_name(folder.name + "-wheel"))))
    return folder


def _wheel(folder: Path) -> Path:
    """Our wheel, built from this source as `make wheel` does."""
    command = [sys.executable, str(ROOT / "packaging/build_wheel.py"), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise MachineError(done.stderr.strip()[-2000:])
    (wheel,) = folder.glob("*.whl")
    return wheel


def _name(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise MachineError(f"pip {' '.join(arguments)} failed:\n{done.stderr.strip()[-2000:]}")
