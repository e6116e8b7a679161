"""A container's control group as the kernel keeps it: what is limited in fact, and what was used. Versions 1 and 2."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

# Version 1 says "no limit" by the largest number of pages; anything near it is none.
_NO_LIMIT_BYTES = 1 << 60
_MIB = 1 << 20
# What the kernel takes at least, whatever the share; so a small share is one of its longest period.
_MIN_QUOTA_US = 1000
_PERIOD_US, _LONG_PERIOD_US = 100_000, 1_000_000
_SMALL_CORES = 0.012


class CgroupError(Exception):
    """A file of a control group is not there, or does not take what is written."""


def bandwidth(cores: float) -> tuple[int, int]:
    """Microseconds of a core's time, and in how many, for a share of one core or several."""
    period = _LONG_PERIOD_US if cores < _SMALL_CORES else _PERIOD_US
    return max(_MIN_QUOTA_US, round(cores * period)), period


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Where a container's groups are, by controller; in version 2 all are one folder, under ""."""

    folders: Mapping[str, Path] = field(default_factory=dict)

    def cores(self) -> float | None:
        """The quota as a share of one core's time; None where there is none."""
        if (unified := self.folders.get("")) is not None and (text := _read(unified / "cpu.max")) is not None:
            quota, period = text.split()
            return None if quota == "max" else int(quota) / int(period)
        quota_us, period_us = (self._number("cpu", f"cpu.cfs_{part}_us") for part in ("quota", "period"))
        return quota_us / period_us if quota_us is not None and period_us and quota_us > 0 else None

    def set_cores(self, cores: float | None) -> None:
        """Writes the quota and reads it back. Raises CgroupError unless it holds."""
        quota, period = (None, _PERIOD_US) if cores is None else bandwidth(cores)
        unified = self.folders.get("")
        if unified is not None and (unified / "cpu.max").exists():
            _write(unified / "cpu.max", f"{'max' if quota is None else quota} {period}")
        elif "cpu" in self.folders:
            _write(self.folders["cpu"] / "cpu.cfs_period_us", str(period))
            _write(self.folders["cpu"] / "cpu.cfs_quota_us", str(-1 if quota is None else quota))
        else:
            raise CgroupError("the kernel's cpu controller is not there for this container")
        expected, got = None if quota is None else quota / period, self.cores()
        if got != expected:
            raise CgroupError(f"a quota of {expected} cores was written, and {got} was read back")

    def memory_mib(self) -> int | None:
        """The limit; None where there is none."""
        limit = self._number("memory", "memory.limit_in_bytes", "memory.max")
        return None if limit is None or limit >= _NO_LIMIT_BYTES else limit // _MIB

    def swap_mib(self) -> int | None:
        """How much swap it may use beside its memory; None where nothing limits or tells it."""
        if (unified := self._number("memory", "", "memory.swap.max")) is not None:
            return unified // _MIB
        both = self._number("memory", "memory.memsw.limit_in_bytes")
        memory = self._number("memory", "memory.limit_in_bytes")
        return None if both is None or memory is None or both >= _NO_LIMIT_BYTES else (both - memory) // _MIB

    def used_mib(self) -> float | None:
        """Without what the kernel would give back at once: pages of files that nobody has used for long."""
        used = self._number("memory", "memory.usage_in_bytes", "memory.current")
        said = self._named("memory", "memory.stat") or self._named("", "memory.stat")
        idle = said.get("total_inactive_file", said.get("inactive_file", 0))
        return None if used is None else max(0, used - idle) / _MIB

    def peak_mib(self) -> float | None:
        """The most it ever used, files in the page cache included; None where the kernel does not say (before 5.19)."""
        peak = self._number("memory", "memory.max_usage_in_bytes", "memory.peak")
        return None if peak is None else peak / _MIB

    def cpu_s(self) -> float | None:
        if (usage := self._number("cpuacct", "cpuacct.usage")) is not None:
            return usage / 1e9
        used = self._named("", "cpu.stat").get("usage_usec")
        return None if used is None else used / 1e6

    def out_of_memory_kills(self) -> int:
        said = self._named("memory", "memory.oom_control") or self._named("", "memory.events")
        return said.get("oom_kill", 0)

    def _number(self, controller: str, name: str, unified: str = "") -> int | None:
        """What a file holds: of version 1's controller, or of version 2."""
        candidates = ((controller, name), ("", unified))
        for where, file in candidates:
            if file and where in self.folders and (text := _read(self.folders[where] / file)) is not None:
                return None if text == "max" else int(text)
        return None

    def _named(self, controller: str, name: str) -> dict[str, int]:
        """Lines of a name and a number."""
        text = _read(self.folders[controller] / name) if controller in self.folders else None
        pairs = (line.split() for line in (text or "").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def cgroup_of(pid: int, container: str = "", proc: Path = Path("/proc")) -> Cgroup:
    """The groups that a process is in, or above them those that bear its container's id, which have the limits.

    An engine may put processes one deeper than the group that it limits.
    """
    try:
        memberships = (proc / str(pid) / "cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return Cgroup()
    folders: dict[str, Path] = {}
    mounts = tuple(_mounts(proc))
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            for mount in mounts:
                if controller in mount.controllers and (below := mount.below(path)) is not None:
                    folders[controller] = mount.point / _cut(below, container)
                    break
    return Cgroup(folders)


@dataclass(frozen=True, slots=True)
class _Mount:
    """A mounted hierarchy: which part of it, where, and its controllers; "" is version 2's."""

    root: str
    point: Path
    controllers: frozenset[str]

    def below(self, path: str) -> str | None:
        """A group's path under this mount; None where it is outside of what is mounted."""
        relative = os.path.relpath(path, self.root)
        return None if relative.startswith("..") else relative


def _mounts(proc: Path) -> Iterator[_Mount]:
    for line in (proc / "self" / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        _, _, _, root, point, *_ = before.split(" ")
        # Spaces and the like are octal there.
        here = Path(point.encode().decode("unicode_escape"))
        if kind == "cgroup2":
            yield _Mount(root, here, frozenset({""}))
        elif kind == "cgroup":
            yield _Mount(root, here, frozenset(options.split(",")))


def _cut(path: str, container: str) -> str:
    """The path down to the part with the container's id; all of it where none has."""
    parts = path.split("/")
    named = [number for number, part in enumerate(parts) if container and container in part]
    return "/".join(parts[: named[0] + 1]) if named else path


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise CgroupError(f"{path} does not take {text!r} ({error.strerror})") from None
