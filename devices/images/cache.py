"""Where this machine keeps what takes minutes to make: roots of Debian, wheels of other architectures."""

import os
from pathlib import Path

FOLDER = "SPARSEFLEET_CACHE"


def cache_folder() -> Path:
    """The folder named by SPARSEFLEET_CACHE, by default ~/.cache/sparsefleet; safe to remove at any time."""
    folder = Path(os.environ.get(FOLDER) or Path.home() / ".cache" / "sparsefleet").expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return folder
