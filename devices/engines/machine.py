"""What a fleet needs of this machine beside an engine, each lack with its remedy."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from devices.engines import disks
from devices.engines.client import is_root
from devices.engines.engine import Finding
from devices.engines.namespaces import has_netem

_BINFMT = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")
_GIB = 1 << 30
# For a root, its image and the package's layer, and what a run writes.
_DISK_GIB = 4
# A coordinator that evaluates, a broker, and a few small boards.
_MEMORY_GIB = 2
_TIMEOUT_S = 30
# The first that coordinators use.
_MOSQUITTO = 2


def look(folder: Path) -> tuple[Finding, ...]:
    """Everything. folder: where a run would write."""
    return (*_room(folder), _netem(), _own_disks(), _arm64(), _broker(), _roots())


def _room(folder: Path) -> Iterable[Finding]:
    cores = len(os.sched_getaffinity(0))
    yield Finding("cores", "ok", f"{cores}; more devices than these take turns, and the clock is slowed for it")
    available = _meminfo("MemAvailable") / _GIB
    remedy = "close what else runs, or emulate fewer or smaller boards"
    yield _enough("memory", available, _MEMORY_GIB, remedy)
    free = shutil.disk_usage(folder).free / _GIB
    yield _enough("disk", free, _DISK_GIB, f"make room at {folder}, or choose another folder by --out")


def _enough(name: str, have: float, wanted: float, remedy: str) -> Finding:
    detail = f"{have:.1f} GiB free"
    return Finding(name, "ok", detail) if have >= wanted else Finding(name, "warning", f"only {detail}", remedy)


def _netem() -> Finding:
    proxy = "the TCP proxy shapes links"
    if has_netem():
        return Finding("netem", "ok", f"{proxy}; this kernel can lose and delay packets too")
    if shutil.which("tc") is None:
        return Finding("netem", "ok", f"{proxy} alone: tc is not installed (iproute2)")
    why = "this kernel has no netem" if is_root() else "netem was not tried, for it needs root"
    return Finding("netem", "ok", f"{proxy} alone: {why}")


def _own_disks() -> Finding:
    lack = disks.why_not()
    if lack is None:
        return Finding("disks", "ok", "each device gets a disk of its size, which loses what was not synced")
    return Finding("disks", "warning", f"{lack}; devices write to this machine's", "run it as root, with e2fsprogs")


def _arm64() -> Finding:
    if platform.machine() == "aarch64":
        return Finding("arm64", "ok", "this machine's own")
    if _BINFMT.exists():
        return Finding("arm64", "ok", "the kernel hands arm64 programs to QEMU")
    remedy = "apt-get install --no-install-recommends qemu-user-static binfmt-support arch-test"
    return Finding("arm64", "warning", "no emulation: boards run as native = true only", remedy)


def _broker() -> Finding:
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    remedy = "apt-get install --no-install-recommends mosquitto"
    lack = "the built-in broker is for a few devices"
    if path is None:
        return Finding("mosquitto", "warning", f"not installed; {lack}", remedy)
    done = subprocess.run([path, "-h"], capture_output=True, text=True, timeout=_TIMEOUT_S)
    version = re.search(r"version (\d+)(\S*)", done.stdout)
    if version is None or int(version[1]) < _MOSQUITTO:
        return Finding("mosquitto", "warning", f"not of version {_MOSQUITTO} or later; {lack}", remedy)
    return Finding("mosquitto", "ok", f"{version[1]}{version[2]}")


def _roots() -> Finding:
    if shutil.which("mmdebstrap"):
        return Finding("mmdebstrap", "ok", "images need no registry")
    remedy = "apt-get install --no-install-recommends mmdebstrap"
    return Finding("mmdebstrap", "warning", "not installed; images are made from a registry's Debian", remedy)


def _meminfo(name: str) -> int:
    """In bytes."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    return next((int(words[1]) << 10 for words in lines if words[0] == f"{name}:"), 0)
