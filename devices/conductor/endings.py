"""What ends a fleet from outside: signals, each of which is acted on once, and in order."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator
from typing import Any

from devices.conductor.course import Course

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def interruptible(course: Course) -> Iterator[None]:
    """A signal ends the course in order; before it has begun, whatever is under way. A second one changes nothing."""
    loop, this = asyncio.get_running_loop(), asyncio.current_task()
    assert this is not None
    course.abort = this.cancel
    before = {number: signal.getsignal(number) for number in _heard()}
    for number in before:
        loop.add_signal_handler(number, course.told_to_end, "interrupted")
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)


@contextlib.contextmanager
def in_order() -> Iterator[None]:
    """Whoever is told to end, by a terminal that closes or by `down`, takes away what there is, as at Ctrl-C."""
    with _handled(signal.default_int_handler):
        yield


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """What is taken away is taken away whole, whoever is impatient."""
    with _handled(signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handled(handler: Any) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _heard()}
    try:
        yield
    finally:
        for number, was in before.items():
            signal.signal(number, was)


def _heard() -> tuple[signal.Signals, ...]:
    """Those that we act on: what nohup or a shell had us ignore stays ignored."""
    return tuple(number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN)
