"""What every command shares: usage mistakes and our errors become exit codes, and Ctrl-C ends without a traceback."""

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from protocol.errors import ConfigurationError, SparsefleetError

EXIT_CODES = "exit codes: 0 ok, 1 failure, 2 nothing to do, 3 configuration, 4 unreachable, 5 not enrolled"
# What a shell reports of a command that Ctrl-C ended.
INTERRUPTED = 130
# Libraries that not every installation has, by the extra that brings them.
_EXTRAS = {
    **dict.fromkeys(("onnx", "onnxscript", "rich", "torch", "torch_pruning"), "export"),
    "amqtt": "coordinator",
}


class Parser(argparse.ArgumentParser):
    """Usage mistakes are configuration mistakes: exit code 3. Examples in its help stay on their line, to be copied."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | given)

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ConfigurationError.exit_code, f"{self.prog}: {message}\n")


def run_command(parser: argparse.ArgumentParser, arguments: list[str] | None) -> int:
    """Calls the `command` that the parser sets as a default, with the options; returns the exit code."""
    options = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except SparsefleetError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        said = not_installed(error)
        if said is None:
            raise
        print(f"{parser.prog}: {said}", file=sys.stderr)
        return ConfigurationError.exit_code
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has seen enough; nothing more may be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SparsefleetError.exit_code


def not_installed(error: ModuleNotFoundError) -> str | None:
    """What to install where a library of an extra is missing; None where it is none of them: a mistake of ours."""
    library = (error.name or "").partition(".")[0]
    extra = _EXTRAS.get(library)
    return extra and f"needs {library}, which is not installed here; pip install 'sparsefleet[{extra}]'"
