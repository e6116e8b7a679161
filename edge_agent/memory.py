"""How much memory training may use on this device: what the settings say, or what the system leaves."""

from pathlib import Path

_MIB = 1 << 20


def available_mib(configured: int, root: Path = Path("/")) -> int | None:
    """MiB for this process: `configured` unless it is 0, else what Linux says is available, but at most the limit of
    the process's control group; None where neither can be read. root: of the file system, for tests.

    A control group's limit counts whole: it is made for the agent alone, as by a container or a unit's MemoryMax.
    """
    if configured:
        return configured
    found = [b for b in (_free_bytes(root), *_limits(root)) if b is not None]
    return min(found) // _MIB if found else None


def peak_mib(root: Path = Path("/")) -> float | None:
    """MiB: the most that this process had resident so far; None where Linux does not say. Not getrusage's: that counts
    what the process was before it became this one."""
    for line in _text(root / "proc/self/status").splitlines():
        words = line.split()
        if line.startswith("VmHWM:") and len(words) == 3 and words[1].isdigit():
            return int(words[1]) / 1024
    return None


def _free_bytes(root: Path) -> int | None:
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if name == "MemAvailable" and words and words[0].isdigit():
            return int(words[0]) << 10
    return None


def _limits(root: Path) -> list[int]:
    """Limits of the control groups that hold this process: of version 2 its own and all above it, of version 1."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if controllers and "memory" not in controllers.split(","):
            continue
        folder, file = ("sys/fs/cgroup", "memory.max") if not controllers else ("sys/fs/cgroup/memory", _VERSION_1)
        parts = [p for p in path.split("/") if p not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            said = _text(root.joinpath(folder, *parts[:depth], file)).strip()
            if said.isdigit():
                found.append(int(said))
    return found


_VERSION_1 = "memory.limit_in_bytes"


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
