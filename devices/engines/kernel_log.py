"""Out-of-memory kills as the kernel's log tells them: a control group is gone when its container has ended."""

import ctypes

_READ_ALL, _SIZE = 3, 10
_LIBC = ctypes.CDLL(None, use_errno=True)


def ran_out_of_memory(container: str) -> bool:
    """Whether the log, as far back as it goes, has a kill in a container's group for want of memory.

    Not every engine tells: podman's monitor, of Debian 12 on machines with both versions of control groups, does not.
    False where this user may not read the log.
    """
    return any("oom_memcg=" in line and container in line for line in _lines())


def _lines() -> list[str]:
    size = _LIBC.klogctl(_SIZE, None, 0)
    if size <= 0:
        return []
    buffer = ctypes.create_string_buffer(size)
    read = _LIBC.klogctl(_READ_ALL, buffer, size)
    return buffer.raw[: max(0, read)].decode(errors="replace").splitlines()
