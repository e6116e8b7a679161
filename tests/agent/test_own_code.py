"""Processes of the agent's own code run that code, and nothing that lies in the folder they are started in."""

import os
import subprocess
from pathlib import Path

import pytest

from edge_agent.own_code import own_environment
from edge_agent.renewal import renew_command
from edge_agent.trying import tried
from tests.agent.test_cli import GOOD, write


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder has a package of our name; the file that it would make."""
    made = tmp_path / "it-ran"
    package = tmp_path / "folder" / "edge_agent"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(made)!r}, 'w').close()\n")
    monkeypatch.chdir(package.parent)
    return made


def test_a_check_runs_nothing_of_the_current_folder(planted: Path, tmp_path: Path) -> None:
    found = tried(write(tmp_path, GOOD), None)
    assert not planted.exists()
    assert found["runtime"].status == "ok", found["runtime"].said


def test_a_renewal_runs_nothing_of_the_current_folder(planted: Path, tmp_path: Path) -> None:
    command = renew_command(write(tmp_path, GOOD))
    done = subprocess.run(command, env=own_environment(os.environ), capture_output=True, text=True, timeout=60)
    assert not planted.exists()
    assert done.returncode == 5, done.stderr


def test_the_current_folder_comes_in_by_no_empty_entry_either() -> None:
    modules = own_environment({"PYTHONPATH": ":/mine:"})["PYTHONPATH"].split(":")
    assert modules[0] == "/mine"
    assert "" not in modules
