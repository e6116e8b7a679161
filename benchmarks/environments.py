"""Fresh virtual environments as users install them: made by venv and pip, weighed by their files."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

from protocol.errors import ConfigurationError, SparsefleetError

TORCH = "torch"
# What pip needs and training does not, by the names of files and folders in site-packages.
_TOOLS = re.compile(r"(pip|setuptools)(-.*)?|pkg_resources|_distutils_hack|distutils-precedence\.pth")
_VERSIONS_OF = ("onnxruntime", "onnxruntime-training-cpu", "torch", "numpy")


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment's interpreter, and the folder that pip filled."""

    name: str
    python: Path
    packages: Path

    def versions(self) -> dict[str, str]:
        """Of what trains in it."""
        found = {d.name: d.version for d in distributions(path=[str(self.packages)])}
        return {name: found[name] for name in _VERSIONS_OF if name in found}

    def size_mib(self) -> float:
        """Of the files in site-packages, without pip and setuptools."""
        parts = [p for p in self.packages.iterdir() if not _TOOLS.fullmatch(p.name)]
        files = [f for part in parts for f in (part.rglob("*") if part.is_dir() else (part,))]
        return sum(f.lstat().st_size for f in files if not f.is_dir()) / (1 << 20)


def requirements(name: str, project: Path) -> tuple[str, ...]:
    """What pip installs: torch by the project's pin, or the project with an extra. Raises ConfigurationError."""
    extras = _settings(project)["project"]["optional-dependencies"]
    if name == TORCH:
        return (*(r for r in extras["export"] if r.startswith("torch==")), "numpy")
    if name not in extras:
        raise ConfigurationError(f"{name}: pyproject.toml has no such extra, only {', '.join(extras)}")
    return (f"{project}[{name}]",)


def copy_sources(project: Path, to: Path) -> Path:
    """A copy of what the distribution is built of, since a build leaves its traces in the folder it is made in."""
    to.mkdir()
    patterns = _settings(project)["tool"]["setuptools"]["packages"]["find"]["include"]
    for path in [p for pattern in patterns for p in project.glob(pattern) if (p / "__init__.py").is_file()]:
        shutil.copytree(path, to / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project / name, to / name)
    return to


def make(name: str, required: Sequence[str], folder: Path) -> Environment:
    """A new environment in `folder`. Raises SparsefleetError with what venv or pip said, and the remedy."""
    _command((sys.executable, "-m", "venv", str(folder)), "venv failed; on Debian, apt-get install python3-venv")
    python = folder / "bin" / "python"
    install(python, required)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    return Environment(name, python, packages)


def install(python: Path, required: Sequence[str]) -> None:
    """Installs by pip. Raises SparsefleetError with what pip said, and the remedy."""
    remedy = (
        f"pip cannot install {' '.join(required)}; check the network, or name a registry or folder that has it by "
        "pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS)"
    )
    _command((str(python), "-m", "pip", "install", "--no-input", "--quiet", *required), remedy)


def _command(command: Sequence[str], remedy: str) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise SparsefleetError(f"{remedy}. It says:\n{said}")


def _settings(project: Path) -> Mapping[str, Any]:
    return tomllib.loads((project / "pyproject.toml").read_text())
