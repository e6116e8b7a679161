"""Goes into images as sitecustomize.py, for devices whose wall clock is off: see clock.py.

Debian 12's libfaketime (0.9.10) fails clock_nanosleep, of which time.sleep is made, where it is told to leave monotonic
clocks alone (wolfcw/libfaketime, issue 426). select waits by its own length of time, and is left alone.
"""

import select
import time
from typing import SupportsIndex


def _sleep(seconds: float | SupportsIndex, /) -> None:
    length = float(seconds)
    if length < 0:
        raise ValueError("sleep length must be non-negative")
    until = time.monotonic() + length
    while (left := until - time.monotonic()) > 0:
        select.select((), (), (), left)


time.sleep = _sleep
