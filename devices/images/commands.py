"""Command lines of tools and engines that make images, and what they said where they failed."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from typing import Literal

from protocol.errors import SparsefleetError

EngineName = Literal["podman", "docker"]

# Where the caps of a container's user are lower than the engine's defaults, raising them is refused.
ULIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
# What an error quotes of a tool's last words.
_WORDS = 2000


class ImageError(SparsefleetError):
    """An image, or what goes into it, could not be made, looked up or removed."""


def engine_words(engine: EngineName) -> tuple[str, ...]:
    """How an engine is called. podman's own choice, crun, refuses hybrid control groups; runc takes all kinds."""
    if engine == "podman" and shutil.which("runc"):
        return ("podman", "--runtime", "runc")
    return (engine,)


def do(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """What a command printed. Raises ImageError, with its own last words, where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    except OSError as error:
        raise ImageError(f"{command[0]} does not start: {error.strerror}; install it") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-_WORDS:]
        raise ImageError(f"{' '.join(command)} failed with exit code {done.returncode}:\n{said}")
    return done.stdout


def succeeds(*command: str) -> bool:
    """Whether a command ends well; what it says does not matter."""
    return subprocess.run(command, capture_output=True).returncode == 0
