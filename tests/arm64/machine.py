"""An arm64 Debian on this machine: its root is made once, and of its containers none is left behind.

No image registry is asked: mmdebstrap makes the root from Debian's archive, podman runs it, and the kernel hands
its programs to QEMU (binfmt_misc).
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TOOLS = {
    "arch-test": "arch-test",
    "mmdebstrap": "mmdebstrap",
    "podman": "podman",
    "qemu-aarch64-static": "qemu-user-static",
    "runc": "runc",
    "update-binfmts": "binfmt-support",
}
BINFMT = Path("/proc/sys/fs/binfmt_misc")
SUITE = "bookworm"
# The Python of that suite: wheels are chosen for it.
PYTHON = "3.11"
# Python for the agent, and the broker that its tests start.
PACKAGES = ("python3", "mosquitto")
DIST_PACKAGES = f"/usr/local/lib/python{PYTHON}/dist-packages"
# crun refuses hybrid cgroups, and podman's default would raise limits, which is refused where they are capped already.
_PODMAN = ("podman", "--runtime", "runc")
_RUN = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--network", "host")


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
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if missing:
        raise MachineError(f"needs {', '.join(missing)}; apt-get install --no-install-recommends {' '.join(missing)}")
    if os.geteuid() != 0:
        raise MachineError("needs root, to make a root file system and to mount it; sudo make arm64")
    if not (BINFMT / "register").exists():
        _do("mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT))
    if not (BINFMT / "qemu-aarch64").exists():
        _do("update-binfmts", "--enable", "qemu-aarch64")
    if not (BINFMT / "qemu-aarch64").exists():
        raise MachineError(f"the kernel does not hand arm64 programs to QEMU; {BINFMT}/qemu-aarch64 is not there")


def image(cache: Path) -> str:
    """The name of the image of an arm64 root, made in minutes the first time and kept under `cache`."""
    name = f"localhost/sparsefleet-arm64:{SUITE}-{'-'.join(PACKAGES)}"
    if subprocess.run([*_PODMAN, "image", "exists", name]).returncode == 0:
        return name
    root = cache / f"arm64-{SUITE}-{'-'.join(PACKAGES)}.tar"
    if not root.exists():
        half = root.with_suffix(f".{os.getpid()}.tar")
        include = f"--include={','.join(PACKAGES)}"
        try:
            _do("mmdebstrap", "--quiet", "--variant=minbase", "--architectures=arm64", include, SUITE, str(half))
            half.rename(root)
        finally:
            half.unlink(missing_ok=True)
    _do(*_PODMAN, "import", "--quiet", str(root), name)
    return name


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise MachineError(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
