"""Waiting for what real processes and threads bring about, in place of sleeping."""

import time
from collections.abc import Callable


def until(reached: Callable[[], object], what: str = "the condition holds", patience_s: float = 60.0) -> None:
    """Returns as soon as the condition holds; fails, saying what was waited for, when it does not in time."""
    end = time.monotonic() + patience_s
    while not reached():
        assert time.monotonic() < end, f"waited {patience_s:.0f} s in vain until {what}"
        time.sleep(0.01)
