"""Is imported by every Python that starts with this folder in PYTHONPATH: notes what is unpickled, and logs all."""

import logging
import os
import sys
from pathlib import Path
from typing import Any

_LOG = os.environ["SPY_LOG"]
_EVENTS = ("pickle.find_class", "marshal.load", "shelve.open")


def _note(text: str) -> None:
    with Path(_LOG).open("a") as file:
        file.write(f"{os.getpid()} {text}\n")


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _EVENTS:
        _note(f"{event} {arguments}")


def _all(**settings: Any) -> None:
    _note("logs at debug level")
    _basic_config(**{**settings, "level": logging.DEBUG})


_basic_config = logging.basicConfig
logging.basicConfig = _all
sys.addaudithook(_hook)
_note(f"watched {' '.join(sys.orig_argv[1:4])}")
