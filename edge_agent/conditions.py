"""How this device is: power, temperature, load, memory, disk, link and local time, as Linux says."""

import fnmatch
import os
import time
from dataclasses import dataclass
from pathlib import Path

from edge_agent.eligibility import Conditions

_MIB = 1 << 20
# Before this program was made no clock was right: a board without one begins in 1970, or at its image's date.
EARLIEST_S = 1_767_225_600.0
# The default route's destination and flag, as /proc/net/route has them.
_ANYWHERE, _UP = "00000000", 1


@dataclass(frozen=True, slots=True)
class Device:
    """Reads a device. root: of its file system, for tests. state: the folder whose disk counts. threads: that training
    has, which are no other work."""

    state: Path
    metered_interfaces: tuple[str, ...] = ()
    threads: int = 1
    root: Path = Path("/")

    def conditions(self, wall_s: float, *, training: bool) -> Conditions:
        """All but what is counted by the day. wall_s: the system's clock."""
        on_mains, battery = self._power()
        interface = self._interface()
        return Conditions(
            on_mains=on_mains,
            battery_percent=battery,
            temperature_c=self._temperature(),
            load=self._load(self.threads if training else 0),
            memory_mib=self._memory("MemAvailable"),
            own_mib=self._own(),
            disk_mib=self._disk(),
            interface=interface,
            metered=None if interface is None else any(fnmatch.fnmatch(interface, p) for p in self.metered_interfaces),
            second_of_day=second_of_day(wall_s),
        )

    def written_bytes(self) -> int | None:
        """What this process and its living children sent to the disk since they began; None where Linux does not count
        it."""
        found = [self._number_of(f"proc/{process}/io", "write_bytes") for process in ("self", *self._children())]
        counted = [number for number in found if number is not None]
        return sum(counted) if counted and found[0] is not None else None

    def _power(self) -> tuple[bool | None, float | None]:
        """Whether there is mains, and how full the emptiest battery is. No word of a battery means mains."""
        folder = self.root / "sys/class/power_supply"
        supplies = {name: self._supply(folder / name) for name in _names(folder)}
        online = [s["online"] for s in supplies.values() if s["type"] in ("Mains", "USB", "Wireless") and s["online"]]
        # The battery of a mouse is no matter of ours.
        batteries = [s for s in supplies.values() if s["type"] == "Battery" and s["scope"] != "Device"]
        levels = [float(s["capacity"]) for s in batteries if s["capacity"].isdigit()]
        level = min(levels) if levels else None
        if any(word != "0" for word in online):
            return True, level
        if batteries:
            return all(s["status"] in ("Charging", "Full", "Not charging") for s in batteries), level
        return (False if online else None), level

    def _supply(self, folder: Path) -> dict[str, str]:
        return {name: _text(folder / name).strip() for name in ("type", "scope", "online", "status", "capacity")}

    def _temperature(self) -> float | None:
        """Of the hottest place that has a thermometer."""
        folder = self.root / "sys/class/thermal"
        said = [_text(folder / name / "temp").strip() for name in _names(folder) if name.startswith("thermal_zone")]
        found = [int(word) / 1000 for word in said if word.lstrip("-").isdigit()]
        # Sensors that are off say nonsense far below what electronics bear.
        real = [degrees for degrees in found if -60 < degrees < 200]
        return max(real) if real else None

    def _load(self, own: int) -> float | None:
        words = _text(self.root / "proc/loadavg").split()
        try:
            return max(0.0, float(words[0]) - own) / (os.cpu_count() or 1)
        except (IndexError, ValueError):
            return None

    def _memory(self, key: str) -> float | None:
        kib = self._number_of("proc/meminfo", key)
        return None if kib is None else kib / 1024

    def _own(self) -> float | None:
        found = [self._number_of(f"proc/{process}/status", "VmRSS") for process in ("self", *self._children())]
        return None if found[0] is None else sum(number or 0 for number in found) / 1024

    def _children(self) -> list[str]:
        # The agent starts them from its one thread.
        folder = self.root / "proc/self/task"
        return [child for task in _names(folder) for child in _text(folder / task / "children").split()]

    def _disk(self) -> float | None:
        try:
            found = os.statvfs(self.state)
        except OSError:
            return None
        return found.f_bavail * found.f_frsize / _MIB

    def _interface(self) -> str | None:
        """Of the default route, the cheapest where there are several."""
        found = []
        for line in _text(self.root / "proc/net/route").splitlines()[1:]:
            words = line.split()
            if len(words) > 6 and words[1] == words[7] == _ANYWHERE and int(words[3], 16) & _UP:
                found.append((int(words[6]), words[0]))
        return min(found)[1] if found else None

    def _number_of(self, file: str, key: str) -> int | None:
        for line in _text(self.root / file).splitlines():
            name, _, rest = line.partition(":")
            words = rest.split()
            if name == key and words and words[0].isdigit():
                return int(words[0])
        return None


def second_of_day(wall_s: float) -> int | None:
    """Local time; None where the clock is plainly wrong."""
    if wall_s < EARLIEST_S:
        return None
    local = time.localtime(wall_s)
    return local.tm_hour * 3600 + local.tm_min * 60 + local.tm_sec


def day_of(wall_s: float) -> int | None:
    """The local day, counted from 1970; None where the clock is plainly wrong."""
    if wall_s < EARLIEST_S:
        return None
    return int((wall_s + time.localtime(wall_s).tm_gmtoff) // 86_400)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
