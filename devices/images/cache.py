"""Where this machine keeps what takes minutes to make: roots of Debian, wheels of other architectures."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FOLDER = "SPARSEFLEET_CACHE"


def cache_folder() -> Path:
    """The folder named by SPARSEFLEET_CACHE, by default ~/.cache/sparsefleet; safe to remove at any time."""
    folder = Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "sparsefleet").expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def alone(cache: Path, name: str) -> Iterator[None]:
    """Only one process at a time makes what is called so; others wait here, and find it made."""
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
