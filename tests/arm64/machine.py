"""An arm64 Debian on this machine: its root is made once, and of its containers none is left behind.

No image registry is asked: mmdebstrap makes the root from Debian's archive, podman runs it, and the kernel hands
its programs to QEMU (binfmt_misc).
"""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from devices.images import needs, roots
from devices.images.commands import ULIMITS, engine_words
from devices.images.recipe import PACKAGES
from devices.images.roots import PYTHON, Root

TOOLS = {**needs.ROOT_TOOLS, **needs.EMULATION_TOOLS, "podman": "podman", "runc": "runc"}
# What an image of a device stands on, and the broker that the agent's tests start: one root serves both.
ROOT = Root("arm64", (*PACKAGES, "mosquitto"), slim=True)
DIST_PACKAGES = f"/usr/local/lib/python{PYTHON}/dist-packages"
_PODMAN = engine_words("podman")
# Of its architecture, or podman warns of it on the way.
_RUN = (*ULIMITS, "--network", "host", "--platform", "linux/arm64")


class MachineError(Exception):
    """This machine cannot make or run an arm64 root; the text says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Container:
    """What one container sees. `mounts`: folder there -> (folder here, may it be written)."""

    image: str
    mounts: Mapping[str, tuple[Path, bool]]
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"

    def command(self, words: Sequence[str], identity: Path) -> tuple[str, ...]:
        """The command line that runs `words` in it, in the foreground, and writes its id to the file `identity`."""
        volumes = [
            word
            for there, (here, written) in self.mounts.items()
            for word in ("-v", f"{here}:{there}:{'rw' if written else 'ro'}")
        ]
        settings = [word for name, value in self.environment.items() for word in ("-e", f"{name}={value}")]
        own = ("--rm", "--cidfile", str(identity), "-w", self.folder, *volumes, *settings, self.image)
        return (*_PODMAN, "run", *_RUN, *own, *words)


@contextlib.contextmanager
def identity_file() -> Iterator[Path]:
    """A place for a container's id; at the end that container is removed, whatever became of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "id"
        try:
            yield path
        finally:
            if path.exists():
                subprocess.run([*_PODMAN, "rm", "--force", "--ignore", path.read_text().strip()], capture_output=True)


def run(container: Container, words: Sequence[str], timeout_s: float) -> int:
    """Runs a command in a container, its output being ours, to its exit code."""
    with identity_file() as identity:
        return subprocess.run(container.command(words, identity), timeout=timeout_s).returncode


def prepare() -> None:
    """Makes the kernel run arm64 programs. Raises MachineError where it cannot be done here."""
    if missing := needs.install(TOOLS):
        raise MachineError(missing)
    if os.geteuid() != 0:
        raise MachineError("needs root, to make a root file system and to mount it; sudo make arm64")
    if lacking := needs.emulate():
        raise MachineError(lacking)


def image(cache: Path) -> str:
    """The name of the image of an arm64 root, made in minutes the first time and kept under `cache`."""
    return roots.imported(ROOT, cache, "podman")
