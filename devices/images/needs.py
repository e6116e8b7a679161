"""What this machine must have before an image is made, each lack with its remedy."""

import getpass
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from devices.fleet.board import Architecture
from devices.images.commands import EngineName, ImageError, do, engine_words
from protocol.errors import ConfigurationError

BINFMT = Path("/proc/sys/fs/binfmt_misc")
SUBORDINATE = Path("/etc/subuid")
# Debian's names of machines, by the kernel's.
MACHINES: Mapping[str, Architecture] = {"x86_64": "amd64", "aarch64": "arm64"}
# Program -> package. For a root; for another architecture; for a root without being root.
ROOT_TOOLS = {"mmdebstrap": "mmdebstrap"}
EMULATION_TOOLS = {
    "arch-test": "arch-test",
    "qemu-aarch64-static": "qemu-user-static",
    "update-binfmts": "binfmt-support",
}
UNSHARE_TOOLS = {"newuidmap": "uidmap"}
# While one is made: the root's file and what mmdebstrap unpacks; the root's image, the
# package's layer, and a copy of it.
CACHE_MIB, TEMPORARY_MIB, STORE_MIB = 150, 400, 800


def here() -> Architecture:
    """This machine's architecture. Raises ConfigurationError where there are no images for it."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise ConfigurationError(f"no image for this machine, {machine}; there are {', '.join(MACHINES.values())}")
    return MACHINES[machine]


def choose_engine(asked: EngineName | None) -> EngineName:
    """The engine that was asked for, or the one that is there. Raises ConfigurationError where none is."""
    for name in (asked,) if asked else ("podman", "docker"):
        if shutil.which(name):
            return name
    raise ConfigurationError(
        f"no {asked or 'podman or docker'} on this machine; apt-get install --no-install-recommends podman runc, or "
        "run the fleet as plain processes, which need no image"
    )


def install(tools: Mapping[str, str]) -> str:
    """What of these programs is missing, with the command that installs it; empty if nothing is."""
    missing = sorted({package for tool, package in tools.items() if shutil.which(tool) is None})
    if not missing:
        return ""
    return f"needs {', '.join(missing)}; apt-get install --no-install-recommends {' '.join(missing)}"


def may_make_roots() -> str:
    """Why mmdebstrap cannot make a root here; empty if it can."""
    if os.geteuid() == 0:
        return install(ROOT_TOOLS)
    lacking = install({**ROOT_TOOLS, **UNSHARE_TOOLS})
    if lacking:
        return lacking
    user = getpass.getuser()
    ranges = SUBORDINATE.read_text().splitlines() if SUBORDINATE.is_file() else []
    if any(line.split(":")[0] in (user, str(os.geteuid())) for line in ranges):
        return ""
    return (
        f"needs root, or user ids of {user}'s own; "
        f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
    )


def emulate() -> str:
    """Makes the kernel run arm64 programs, as root. Why they do not run here; empty if they do."""
    if (BINFMT / "qemu-aarch64").exists():
        return install({"arch-test": "arch-test"})
    lacking = install(EMULATION_TOOLS)
    if lacking:
        return f"to run arm64 programs it {lacking}"
    mount = ("mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT))
    enable = ("update-binfmts", "--enable", "qemu-aarch64")
    if os.geteuid() != 0:
        return f"the kernel does not run arm64 programs yet; sudo {' '.join(mount)}; sudo {' '.join(enable)}"
    try:
        if not (BINFMT / "register").exists():
            do(*mount)
        do(*enable)
    except ImageError as error:
        return str(error)
    if (BINFMT / "qemu-aarch64").exists():
        return ""
    return f"the kernel does not hand arm64 programs to QEMU: {BINFMT}/qemu-aarch64 is not there"


def store(engine: EngineName) -> Path:
    """Where the engine keeps images. Raises ImageError where it does not answer."""
    field = "{{.Store.GraphRoot}}" if engine == "podman" else "{{.DockerRootDir}}"
    try:
        return Path(do(*engine_words(engine), "info", "--format", field).strip())
    except ImageError as error:
        started = "is its service started, and may this user ask it?" if engine == "docker" else "see podman info"
        raise ImageError(f"{engine} does not work here; {started}\n{error}") from None


def room(places: Sequence[tuple[Path, int]]) -> str:
    """Where there is too little free: of places and the MiB that each must take; empty if there is enough."""
    wanted: dict[int, tuple[Path, int]] = {}
    for path, mib in places:
        # A folder that another machine has (docker's, over the network) or that is yet to be made is of its parent.
        there = next(one for one in (path, *path.parents) if one.exists())
        device = there.stat().st_dev
        wanted[device] = (wanted[device][0] if device in wanted else there, mib + wanted.get(device, (there, 0))[1])
    lacking = []
    for there, mib in wanted.values():
        free = shutil.disk_usage(there).free >> 20
        if free < mib:
            lacking.append(f"{there} has {free} MiB free and {mib} MiB are needed; make room there")
    return "; ".join(lacking)
