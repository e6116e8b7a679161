"""What every command does with mistakes, errors and interruptions: a line on stderr and the documented exit code."""

import argparse
import subprocess
import sys
from typing import NoReturn

import pytest

from protocol.command import EXIT_CODES, Parser, run_command
from protocol.errors import (
    BundleError,
    ConfigurationError,
    DataError,
    NotEnrolledError,
    NothingToDoError,
    SparsefleetError,
    UnreachableError,
)

DOCUMENTED = {
    "failure": SparsefleetError,
    "nothing to do": NothingToDoError,
    "configuration": ConfigurationError,
    "unreachable": UnreachableError,
    "not enrolled": NotEnrolledError,
}


def raising(error: BaseException) -> Parser:
    def command(options: argparse.Namespace) -> NoReturn:
        raise error

    parser = Parser(prog="fleet-test")
    parser.set_defaults(command=command)
    return parser


def test_the_help_names_the_exit_code_of_every_kind_of_error() -> None:
    kinds = ", ".join(f"{kind.exit_code} {word}" for word, kind in DOCUMENTED.items())
    assert f"exit codes: 0 ok, {kinds}" == EXIT_CODES


@pytest.mark.parametrize("kind", [*DOCUMENTED.values(), BundleError, DataError])
def test_an_error_is_one_line_on_stderr_and_its_exit_code(
    kind: type[SparsefleetError], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(raising(kind("port: 70000 must be below 65536")), []) == kind.exit_code
    assert capsys.readouterr().err == "fleet-test: port: 70000 must be below 65536\n"


def test_an_interrupted_command_ends_as_the_shell_reports_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(raising(KeyboardInterrupt()), []) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_usage_mistake_is_a_configuration_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(raising(AssertionError()), ["--nonsense"])
    assert ended.value.code == ConfigurationError.exit_code
    assert "fleet-test: unrecognized arguments: --nonsense" in capsys.readouterr().err


def test_a_fault_of_our_own_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(raising(ZeroDivisionError()), [])


def test_a_reader_that_goes_away_ends_the_command_without_a_traceback() -> None:
    program = """
import sys
from protocol.command import Parser, run_command

def command(options):
    while True:
        print("x" * 1000, flush=True)

parser = Parser(prog="fleet-test")
parser.set_defaults(command=command)
sys.exit(run_command(parser, []))
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert process.wait(30) == SparsefleetError.exit_code
        assert process.stderr.read() == b""


def test_a_library_of_an_extra_that_is_not_installed_is_named_with_the_extra(
    capsys: pytest.CaptureFixture[str],
) -> None:
    missing = ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper")
    assert run_command(raising(missing), []) == ConfigurationError.exit_code
    said = "fleet-test: needs onnx, which is not installed here; pip install 'sparsefleet[export]'\n"
    assert capsys.readouterr().err == said


def test_a_module_of_ours_that_is_missing_is_no_mistake_of_the_operators() -> None:
    with pytest.raises(ModuleNotFoundError):
        run_command(raising(ModuleNotFoundError("No module named 'protocol.nothing'", name="protocol.nothing")), [])
