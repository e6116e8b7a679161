"""A session of processes as /proc shows it, named so that it is never mistaken for a later one of the same number."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat, counted from the one after the command's name, which may hold anything.
_STATE, _SESSION, _USER, _SYSTEM, _CHILD_USER, _CHILD_SYSTEM, _STARTED, _EXIT = 0, 3, 11, 12, 13, 14, 19, 49


@dataclass(frozen=True, slots=True)
class Session:
    """Its leader's number and start, in ticks since this boot."""

    pid: int
    started: int
    boot: str

    @classmethod
    def led_by(cls, pid: int) -> "Session | None":
        """The session of a process that leads one."""
        stat = _stat(pid)
        return None if stat is None else cls(pid, int(stat[_STARTED]), _boot())

    def leader(self) -> list[str] | None:
        """The leader's fields, also of one that has ended and was not waited for."""
        stat = _stat(self.pid)
        same = stat is not None and int(stat[_STARTED]) == self.started and self.boot == _boot()
        return stat if same else None

    def running(self) -> bool:
        leader = self.leader()
        return leader is not None and leader[_STATE] not in "ZX"

    def exit_status(self) -> int | None:
        """As `os.wait` gives it, of a leader that has ended; None where it was waited for, or may not be seen."""
        leader = self.leader()
        return int(leader[_EXIT]) if leader is not None and leader[_STATE] == "Z" else None

    def members(self) -> tuple[int, ...]:
        """Those that run. None, once another process has its number: Linux gives it away when the session is empty."""
        if self.boot != _boot() or (_stat(self.pid) is not None and self.leader() is None):
            return ()
        numbers = (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdecimal())
        stats = ((number, _stat(number)) for number in numbers)
        return tuple(
            number
            for number, stat in stats
            if stat is not None and int(stat[_SESSION]) == self.pid and stat[_STATE] not in "ZX"
        )

    def family(self) -> tuple[int, ...]:
        """The leader and who descends from it: quicker than `members`, which looks at every process there is."""
        if not (_PROC / str(self.pid) / "task" / str(self.pid) / "children").exists():
            # Kernels without CONFIG_PROC_CHILDREN, and leaders that have ended.
            return self.members()
        found = [self.pid] if self.running() else []
        for number in found:
            found += _children(number)
        return tuple(found)

    def kill(self) -> None:
        """SIGKILL to all of it, as often as new ones turn up."""
        while members := self.members():
            for number in members:
                _signal(number, signal.SIGKILL)

    def ask_to_end(self) -> None:
        """SIGTERM to the leader alone, as systemd does; it ends its children itself."""
        if self.running():
            _signal(self.pid, signal.SIGTERM)

    def cpu_s(self) -> float:
        """Processor time of those that run, and of children that ended."""
        stats = [stat for number in self.family() if (stat := _stat(number)) is not None]
        fields = (_USER, _SYSTEM, _CHILD_USER, _CHILD_SYSTEM)
        return sum(int(stat[field]) for stat in stats for field in fields) * _TICK_S

    def memory_mib(self) -> tuple[float, float]:
        """Resident now, and the sum of the peaks of each; what is shared counts for each."""
        now = peak = 0
        for number in self.family():
            said = _status(number)
            now += said.get("VmRSS", 0)
            peak += said.get("VmHWM", 0)
        return now / 1024, peak / 1024


def _signal(number: int, what: signal.Signals) -> None:
    try:
        os.kill(number, what)
    except ProcessLookupError:
        return


def _boot() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _stat(pid: int) -> list[str] | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()


def _children(pid: int) -> list[int]:
    texts = []
    for task in (_PROC / str(pid) / "task").glob("*"):
        try:
            texts.append((task / "children").read_text())
        except (FileNotFoundError, ProcessLookupError):
            # That thread, or all of it, has ended meanwhile.
            continue
    return [int(word) for text in texts for word in text.split()]


def _status(pid: int) -> dict[str, int]:
    """Sizes in KiB by name."""
    try:
        lines = (_PROC / str(pid) / "status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    pairs = (line.split(":", 1) for line in lines if line.startswith("Vm"))
    return {name: int(value.split()[0]) for name, value in pairs}
