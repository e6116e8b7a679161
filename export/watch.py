"""fleet-export in a process of its own, watched: a crash inside torch or onnxruntime ends in a sentence, too."""

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from protocol.command import not_installed
from protocol.errors import ConfigurationError, SparsefleetError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    # Before anything starts threads.
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, _interrupt)
        return _run(argv)
    # A terminal sends Ctrl-C to both, and the child cleans up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return code
    from export import cli

    for folder in cli.unfinished(argv, child):
        shutil.rmtree(folder, ignore_errors=True)
    print(
        f"fleet-export: ended by {signal.Signals(-code).name} inside torch or onnxruntime, nothing was written. At "
        "SIGKILL, memory ran out: use a smaller model or fewer examples. Otherwise take layers away until it exports, "
        "and use another one for the last",
        file=sys.stderr,
    )
    return SparsefleetError.exit_code


def _run(argv: Sequence[str] | None) -> int:
    # Imported here, for on a device its libraries are not there.
    try:
        from export import cli

        return cli.main(argv)
    except ModuleNotFoundError as error:
        said = not_installed(error)
        if said is None:
            raise
        print(f"fleet-export: {said}", file=sys.stderr)
        return ConfigurationError.exit_code


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
