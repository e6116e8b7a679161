"""Memory of other processes as the kernel accounts it: proportional set size, shared pages divided by their users."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

# Reading one process takes the kernel about a millisecond; at this pace sampling stays far below a percent of a core.
INTERVAL_S = 0.2


def pss_mib(pid: int) -> float | None:
    """The process' PSS now, or None when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return None


def children_of(pid: int) -> list[int]:
    """Processes that it started, none of a process that is gone."""
    try:
        files = [task / "children" for task in Path(f"/proc/{pid}/task").iterdir()]
        return [int(found) for file in files for found in file.read_text().split()]
    except OSError:
        return []


def with_children_mib(pid: int) -> float | None:
    """The PSS of a process and of those that it started, now: of an agent and what trains for it."""
    own = pss_mib(pid)
    return None if own is None else own + sum(pss_mib(child) or 0.0 for child in children_of(pid))


class PeakSampler:
    """Watches processes by name and pid until stopped; `peaks` holds the highest PSS seen of each. look: at one pid."""

    def __init__(self, pids: Mapping[str, int], look: Callable[[int], float | None] = pss_mib) -> None:
        self._look = look
        self.peaks: dict[str, float] = {}
        self._pids = dict(pids)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakSampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(INTERVAL_S):
            for name, pid in self._pids.items():
                now = self._look(pid)
                if now is not None:
                    self.peaks[name] = max(now, self.peaks.get(name, 0.0))
