"""A command with a wall clock that is off: `python -m tests.clocked FILE PYTHON -m MODULE ...`, the offset from FILE.

FILE holds seconds to add, and may change at any time. What reads the clock through Python is off; monotonic clocks,
waits and other programs are not. libfaketime, which would reach those too, breaks sleeping by the monotonic clock when
told to leave that alone (0.9.10, Debian 12: clock_nanosleep with TIMER_ABSTIME fails).
"""

import runpy
import sys
import time
from pathlib import Path

_real = time.time
_file = Path(sys.argv[1])


def _shifted() -> float:
    return _real() + float(_file.read_text())


if __name__ == "__main__":
    time.time = _shifted
    time.time_ns = lambda: int(_shifted() * 1e9)
    module, sys.argv = sys.argv[4], sys.argv[4:]
    runpy.run_module(module, run_name="__main__")
