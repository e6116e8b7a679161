"""The wall clock of a device in a container, which has none of its own: libfaketime shifts what its programs read.

It stands between programs and the C library, and so is seen by Python, SQLite and OpenSSL's check of certificates
alike. It is only there for devices whose clock is off: `clock_environment` says what they are started with.

Not shifted: monotonic clocks, which a step of the clock leaves alone on a device too; the kernel, so also what it
writes into a file's times (those are shifted where a program reads them, by the offset of that moment); programs
without the C library; and the process that trains, which the agent starts with few variables and which reads no wall
clock. A step is seen within a second.
"""

import os
from collections.abc import Mapping
from pathlib import Path

# Where sleeping.py is in an image, and the library as Debian has it on every architecture.
SHIM = "/usr/lib/fleet-emulate"
LIBRARY = "/usr/$LIB/faketime/libfaketime.so.1"


def clock_environment(file: str) -> Mapping[str, str]:
    """What a device's processes need to be in. file: where the clock's file is in the container.

    The file must be mounted as a file or in a folder, and written in place by `set_clock`: one that is replaced stays
    what it was for a container that has it mounted.
    """
    return {
        "LD_PRELOAD": LIBRARY,
        "FAKETIME_TIMESTAMP_FILE": file,
        # Looked at once a second, not at each reading: 0.1 us a reading in place of 9.
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # Nothing to share between processes: the file says it all.
        "FAKETIME_DISABLE_SHM": "1",
        "PYTHONPATH": SHIM,
    }


def clock_text(offset_s: float) -> bytes:
    """What the file holds: the offset in seconds, with its sign, by which libfaketime knows that it is one."""
    return f"{offset_s:+017.3f}\n".encode()


def set_clock(file: Path, offset_s: float) -> None:
    """Sets a device's clock; one that runs follows. Always as many bytes, in one write: nobody reads half of it."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, clock_text(offset_s), 0)
    finally:
        os.close(descriptor)
