"""What the training process may take, set by itself before it reads anything: limits of the kernel, and a place behind
everything else on the device."""

import ctypes
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_MIB = 1 << 20
# Shards of data, graphs and a database are open one after the other.
FILES = 256
# What is counted as data and never touched: NumPy's linear algebra and the runtime take buffers and heaps in advance.
# Measured with onnxruntime 1.19.2, NumPy 2.4 and one thread: 45 MiB.
UNTOUCHED_MIB = 64
# Of 1000: where memory runs out, the kernel takes training first, and the agent and what else runs here live.
OOM_SCORE = 500
_OOM_SCORE_FILE = Path("/proc/self/oom_score_adj")


def die_with(parent: int) -> bool:
    """Has the kernel end this process when its parent ends, however that comes. False where it is gone already."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return os.getppid() == parent


def stand_back(nice: int) -> None:
    """A lower priority than the agent's, for the processor and for memory."""
    os.nice(nice)
    # A container may forbid either: then the priority says enough, and the kernel chooses by size, which it is too.
    with suppress(OSError):
        # Longer turns, and never woken before what somebody waits for.
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    with suppress(OSError):
        before = int(_OOM_SCORE_FILE.read_text())
        _OOM_SCORE_FILE.write_text(str(min(1000, before + OOM_SCORE)))


def confine(memory_mib: int, disk_mib: int) -> None:
    """Limits of this process, for good. memory_mib: of memory that it writes to, code and files apart; 0 is none.

    Not of processes: the kernel counts all of a user's, and those of a desktop are none of ours.
    """
    os.umask(0o077)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, FILES)
    _limit(resource.RLIMIT_FSIZE, disk_mib * _MIB)
    if memory_mib:
        # Not of addresses: onnxruntime and the libraries of NumPy map far more than they ever touch.
        _limit(resource.RLIMIT_DATA, (memory_mib + UNTOUCHED_MIB) * _MIB)


def allow_cpu(seconds: float) -> None:
    """From now on this process is ended once it has used so much more of a processor."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = int(used.ru_utime + used.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _limit(which: int, value: int) -> None:
    _, hard = resource.getrlimit(which)
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (bound, bound))


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
