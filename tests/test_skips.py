"""In CI a skipped test is a failure, unless what it lacks is on the list; elsewhere it is a skip."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TESTS = """
import pytest

def test_that_needs_a_tool():
    pytest.skip("mosquitto is not installed")

@pytest.mark.skip(reason="too slow today")
def test_that_nobody_runs():
    pass

def test_that_needs_data():
    pytest.skip("data not at hand: hapt_windows.npz is not in /data")

@pytest.mark.xfail(reason="known")
def test_that_is_known_to_fail():
    raise AssertionError

def test_that_runs():
    pass
"""


def outcome(folder: Path, tests: str, *, ci: bool) -> tuple[int, str]:
    (folder / "test_some.py").write_text(tests)
    environment = {k: v for k, v in os.environ.items() if k != "CI"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-ra", "-p", "tests.conftest", "-p", "no:cacheprovider", "test_some.py"],
        cwd=folder,
        env=environment | ({"CI": "true"} if ci else {}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout


def test_in_ci_a_skip_fails_with_its_reason_unless_the_list_allows_it(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, TESTS, ci=True)
    assert code == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 1 error" in said
    assert "skipped, and CI=true: mosquitto is not installed" in said
    assert "skipped, and CI=true: too slow today" in said


def test_elsewhere_a_skip_is_a_skip(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, TESTS, ci=False)
    assert code == pytest.ExitCode.OK
    assert "1 passed, 3 skipped, 1 xfailed" in said


def test_in_ci_a_whole_file_that_is_skipped_fails_too(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, "import pytest\npytest.importorskip('no_such_module')\n", ci=True)
    assert code == pytest.ExitCode.INTERRUPTED
    assert "skipped, and CI=true: could not import 'no_such_module'" in said
