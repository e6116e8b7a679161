"""Environments with the oldest, a middle and the newest onnxruntime, made once; `make runtimes` makes them.

Graphs that load in the one runtime at hand prove nothing about the others, and no two fit into one environment.
"""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from devices.images.cache import cache_folder


@dataclass(frozen=True, slots=True)
class Environment:
    """A release of onnxruntime and the NumPy to put beside it. `pythons`: the first it has wheels for, and the last."""

    onnxruntime: str
    numpy: str
    pythons: tuple[tuple[int, int], tuple[int, int]]

    def why_not(self) -> str | None:
        """Why this Python cannot have it, or None."""
        first, last = self.pythons
        if first <= sys.version_info[:2] <= last:
            return None
        return f"onnxruntime {self.onnxruntime} has no wheel for Python {sys.version_info[0]}.{sys.version_info[1]}"

    @property
    def python(self) -> Path:
        """Its interpreter, whether it is there or not. Another Python, or another pair, is another environment."""
        version = f"py{sys.version_info[0]}{sys.version_info[1]}"
        name = f"{version}-onnxruntime{self.onnxruntime}-numpy{self.numpy.strip('=<>~')}"
        return cache_folder() / "runtimes" / name / "bin" / "python"


ENVIRONMENTS = (
    # Built against NumPy 1, and crashes with 2.
    Environment("1.17.3", "==1.26.4", ((3, 8), (3, 12))),
    Environment("1.23.2", "<3", ((3, 10), (3, 13))),
    Environment("1.32.0", "<3", ((3, 11), (3, 14))),
)


def make(environment: Environment) -> None:
    """Makes an environment that is not there yet; a failed one leaves nothing that would pass for made."""
    folder = environment.python.parents[1]
    if environment.python.exists():
        return
    # A virtual environment cannot be moved: its interpreter is put in place last.
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    waiting = environment.python.with_name("python-not-ready")
    environment.python.rename(waiting)
    libraries = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet", "install")
    wheels = (f"onnxruntime=={environment.onnxruntime}", f"numpy{environment.numpy}")
    subprocess.run([*pip, "--only-binary=:all:", "--target", str(libraries), *wheels], check=True)
    waiting.rename(environment.python)


def main() -> None:
    for environment in ENVIRONMENTS:
        reason = environment.why_not()
        if reason is None:
            make(environment)
        print(f"runtimes: {reason or environment.python.parents[1]}")


if __name__ == "__main__":
    main()
