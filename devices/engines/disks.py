"""A device's disk: an ext4 image of its size, mounted where its state lies, which can lose power."""

import fcntl
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from devices.engines.engine import EngineError

# Told by its name whose it is, to whoever finds it mounted after a crash.
_SUFFIX = ".sparsefleet.ext4"
# What the kernel says after the name of a file that was removed; its disk is mounted all the same.
_DELETED = " (deleted)"
_ESCAPED = re.compile(r"\\([0-7]{3})")
_MIB = 1 << 20
# Below it there is no room for a journal, without which a power cut is not what it is on a device.
MIN_MIB = 8
# Sparse, a disk takes what is written to it; what a device writes in a run, at most, must be free.
_WRITTEN_MIB = 256
# From here on, a journal and tables for few files: a card of 64 GB would else take 260 MB of this machine before its
# first file.
_LARGE_MIB = 512
_LEAN = ("-J", "size=4", "-i", "65536")
# _IOR('X', 125, __u32) and EXT4_GOING_FLAGS_NOLOGFLUSH of the kernel's fs/ext4/ext4.h: no write reaches the disk after.
_EXT4_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted image: its file, where it is mounted, and its loop device."""

    image: Path
    point: Path
    loop: str

    @property
    def size_mib(self) -> int:
        """As the kernel has it."""
        return int(Path(f"/sys/block/{self.loop}/size").read_text()) * 512 // _MIB


def why_not() -> str | None:
    """Why disks of their own cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "a disk of its own needs root, to mount it"
    if shutil.which("mkfs.ext4") is None:
        return "a disk of its own needs mkfs.ext4; install e2fsprogs"
    if not Path("/dev/loop-control").exists():
        return "a disk of its own needs loop devices, which this machine has not (/dev/loop-control)"
    return None


def make_disk(fleet: str, device: str, point: Path, size_mib: int, owner: tuple[int, int]) -> None:
    """Makes and mounts a disk over a folder, with what was in the folder."""
    if size_mib < MIN_MIB:
        raise EngineError(f"{fleet}/{device}: a disk of {size_mib} MiB is too small; give it {MIN_MIB} MiB or more")
    image = point.parent / f"{fleet}.{device}{_SUFFIX}"
    free_mib = shutil.disk_usage(point.parent).free // _MIB
    if free_mib < min(size_mib, _WRITTEN_MIB):
        raise EngineError(
            f"{fleet}/{device}: a disk of {size_mib} MiB needs {min(size_mib, _WRITTEN_MIB)} MiB to grow, and "
            f"{free_mib} MiB are free at {point.parent}; make room there, or give it a smaller disk"
        )
    image.unlink(missing_ok=True)
    with image.open("xb") as file:
        file.truncate(size_mib * _MIB)
    extended = f"root_owner={owner[0]}:{owner[1]},lazy_itable_init=1,lazy_journal_init=1"
    lean = _LEAN if size_mib >= _LARGE_MIB else ()
    _do("mkfs.ext4", "-q", "-F", "-m", "0", *lean, "-E", extended, "-d", str(point), str(image))
    _mount(image, point)
    (point / "lost+found").rmdir()


def disks(fleet: str) -> tuple[Disk, ...]:
    """Those of a fleet that are mounted, whoever did it."""
    return tuple(disk for disk in _mounted() if disk.image.name.startswith(f"{fleet}."))


def disk_of(fleet: str, device: str) -> Disk | None:
    wanted = f"{fleet}.{device}{_SUFFIX}"
    return next((disk for disk in _mounted() if disk.image.name == wanted), None)


def fleets_with_disks() -> set[str]:
    return {disk.image.name.partition(".")[0] for disk in _mounted()}


def lose_power(disk: Disk) -> None:
    """What was not synced is gone; the journal is replayed as at a device's next start."""
    folder = os.open(disk.point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(folder, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(folder)
    _do("umount", str(disk.point))
    _mount(disk.image, disk.point)


def remove_disk(disk: Disk) -> None:
    _do("umount", str(disk.point))
    disk.image.unlink(missing_ok=True)


def _mount(image: Path, point: Path) -> None:
    _do("mount", "-t", "ext4", "-o", "loop,nodev,nosuid,errors=continue", str(image), str(point))


def _mounted() -> Iterator[Disk]:
    seen: set[str] = set()
    # Names of folders may be any bytes; of these the kernel escapes blanks, line ends and backslashes.
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")
    for line in mounts.split("\n"):
        if not line:
            continue
        before, _, after = line.partition(" - ")
        source = after.split(" ")[1]
        if not source.startswith("/dev/loop"):
            continue
        loop = source.removeprefix("/dev/")
        try:
            file = Path(f"/sys/block/{loop}/loop/backing_file").read_text(encoding="utf-8", errors="surrogateescape")
        except FileNotFoundError:
            continue
        image = Path(file.rstrip("\n").removesuffix(_DELETED))
        if image.name.endswith(_SUFFIX) and loop not in seen:
            seen.add(loop)
            yield Disk(image, Path(_ESCAPED.sub(lambda found: chr(int(found[1], 8)), before.split(" ")[4])), loop)


def _do(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if done.returncode != 0:
        raise EngineError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
