"""Debian 12 in containers that stand for boards: one of this architecture, blank or with systemd as its first process,
and an emulated arm64 one."""

import contextlib
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from devices.images import roots
from devices.images.commands import ULIMITS, engine_words
from devices.images.roots import Root
from tests.arm64 import machine
from tests.arm64.machine import MachineError
from tests.waiting import until

# Already downloaded in the blank root, and not installed: a board's two commands are timed without their download, and
# the tests go without a network.
DOWNLOADED = ("python3", "adduser", "libstdc++6", "mosquitto")
# Of a board whose first process is systemd; what it then needs of the others is there already.
MANAGED = ("systemd", "systemd-sysv", "dbus", "python3", "adduser", "libstdc++6")
ROOT = Path(__file__).parents[2]
# The suite after SUITE.
NEWER = "trixie"
_SLEEP = "while sleep 3600; do :; done"
_PODMAN = engine_words("podman")
_LIMITS = (*ULIMITS, "--network", "host")
# systemd mounts and makes control groups, in namespaces of its own: nothing of it is seen outside. podman's own
# --systemd is left aside, for under cgroup v1 it gives the machine's groups to the container.
_MANAGED = (
    *("--systemd", "false", "--cgroupns", "private", "--cap-add", "SYS_ADMIN", "--stop-signal", "RTMIN+3"),
    *("--tmpfs", "/run", "--tmpfs", "/run/lock", "--tmpfs", "/tmp", "-e", "container=podman"),
    *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
)
# Its own control groups, of either version, are mounted read only.
_INIT = (
    "for each in /sys/fs/cgroup /sys/fs/cgroup/*; do mountpoint -q $each && mount -o remount,bind,rw $each; done; "
    "exec /lib/systemd/systemd"
)


@dataclass(frozen=True, slots=True)
class Board:
    """A running container, by its id."""

    container: str
    architecture: str

    def command(self, *words: str) -> tuple[str, ...]:
        """The command line that runs `words` on it as root, in the foreground."""
        return (*_PODMAN, "exec", self.container, *words)

    def run(self, *words: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end, whatever that is."""
        return subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout_s)

    def must(self, *words: str, timeout_s: float = 300.0) -> str:
        """What a command printed, which went well."""
        done = self.run(*words, timeout_s=timeout_s)
        assert done.returncode == 0, f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def has(self, path: str) -> bool:
        return self.run("test", "-e", path).returncode == 0

    def copy_out(self, paths: Iterable[str], to: Path) -> None:
        """Copies folders from it to a folder here, with owners, which podman's own copy changes."""
        names = [path.lstrip("/") for path in paths]
        packed = subprocess.run(self.command("tar", "-C", "/", "-c", *names), capture_output=True, check=True).stdout
        to.mkdir()
        subprocess.run(["tar", "-C", str(to), "--numeric-owner", "-px"], input=packed, check=True)


@contextlib.contextmanager
def board(architecture: str, cache: Path, mounts: dict[str, Path]) -> Iterator[Board]:
    """A board that lives for the block. mounts: folder there -> folder here, read only."""
    name = machine.image(cache) if architecture == "arm64" else _blank(cache)
    with running(name, {}, mounts, "sh", "-c", _SLEEP) as container:
        yield Board(container, architecture)


@contextlib.contextmanager
def managed_board(cache: Path, mounts: dict[str, Path]) -> Iterator[Board]:
    """A board that systemd has booted, as its first process. mounts: as of `board`."""
    name = roots.imported(Root("amd64", MANAGED, DOWNLOADED), cache, "podman")
    with running(name, {}, mounts, "sh", "-c", _INIT, options=_MANAGED) as container:
        there = Board(container, "amd64")
        until(lambda: there.run("systemctl", "is-system-running").stdout.strip() == "running", "systemd has booted")
        yield there


@contextlib.contextmanager
def newer_board(cache: Path, mounts: dict[str, Path]) -> Iterator[Board]:
    """A board of the next Debian, whose Python is another. mounts: as of `board`."""
    name = roots.imported(Root("amd64", ("python3", "python3-venv"), suite=NEWER), cache, "podman")
    with running(name, {}, mounts, "sh", "-c", _SLEEP) as container:
        yield Board(container, "amd64")


@contextlib.contextmanager
def running(
    image: str, written: dict[str, Path], read: dict[str, Path], *words: str, options: tuple[str, ...] = ()
) -> Iterator[str]:
    """A container of an image, by its id, with its own command or another; gone after the block. options: of podman."""
    places = [f"{here}:{there}:ro" for there, here in read.items()]
    places += [f"{here}:{there}:rw" for there, here in written.items()]
    volumes = [word for place in places for word in ("-v", place)]
    container = _do(*_PODMAN, "run", "--detach", *_LIMITS, *options, *volumes, image, *words).strip()
    try:
        yield container
    finally:
        subprocess.run([*_PODMAN, "rm", "--force", "--time", "0", "--ignore", container], capture_output=True)


def once(image: str, options: tuple[str, ...], *words: str) -> str:
    """What a container of an image printed, that ran to its end and is gone."""
    return _do(*_PODMAN, "run", "--rm", *_LIMITS, *options, image, *words)


def is_healthy(container: str) -> bool:
    """Whether its own check of health finds it well now."""
    return subprocess.run([*_PODMAN, "healthcheck", "run", container], capture_output=True).returncode == 0


def stop(container: str) -> None:
    """Ends a container as `podman stop` does; it must end well, and by itself."""
    _do(*_PODMAN, "stop", "--time", "30", container)
    code = _do(*_PODMAN, "inspect", "--format", "{{.State.ExitCode}}", container).strip()
    assert code == "0", f"the container ended with exit code {code}"


def agent_image(folder: Path, cache: Path) -> str:
    """An image by packaging/Containerfile, of the package that is alone in a folder.

    Without layers: podman takes an old one for what only the folder has changed.
    """
    name = "localhost/sparsefleet-edge-agent:test"
    options = ("--layers=false", "--format", "docker", "--network", "host", *ULIMITS)
    base = f"BASE={_blank(cache)}"
    file = str(ROOT / "packaging" / "Containerfile")
    _do(*_PODMAN, "build", "--quiet", *options, "--build-arg", base, "-t", name, "-f", file, str(folder))
    return name


def _blank(cache: Path) -> str:
    """The image of a minimal root, made in a minute the first time and kept under `cache`."""
    return roots.imported(Root("amd64", downloaded=DOWNLOADED), cache, "podman")


def _do(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise MachineError(f"{' '.join(command)} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout
