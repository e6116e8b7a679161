"""What of the arm64 job needs no arm64: what it installs, what it counts as good, what it says without tools."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from devices.images.commands import engine_words
from tests.arm64 import machine, results, wheels
from tests.arm64.machine import Container

ROOT = Path(__file__).parents[2]


@pytest.fixture
def junit(tmp_path: Path) -> Path:
    """What pytest writes of tests that pass, fail, break, and are skipped alone and as a file."""
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert False\n"
        "@pytest.fixture\n"
        "def broken(): raise OSError\n"
        "def test_broken(broken): pass\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_skipped(n): pytest.skip('ort-training: onnxruntime 1.23.2 here cannot train')\n"
    )
    (tmp_path / "test_file.py").write_text("import pytest\npytest.importorskip('torch_of_nobody')\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml=found.xml", "."]
    environment = {name: value for name, value in os.environ.items() if name != "CI"}
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    return tmp_path / "found.xml"


def test_a_run_is_counted_with_its_skips_by_reason(junit: Path) -> None:
    found = results.read(junit)
    assert (found.passed, found.failed) == (1, 2)
    assert dict(found.skipped) == {
        "ort-training: onnxruntime 1.23.2 here cannot train": 2,
        "could not import 'torch_of_nobody': No module named 'torch_of_nobody'": 1,
    }


def test_failures_skips_off_the_list_and_a_run_of_nothing_are_complaints(junit: Path) -> None:
    assert results.read(junit).complaints() == (
        "2 tests failed",
        "skipped: could not import 'torch_of_nobody': No module named 'torch_of_nobody'",
    )
    assert results.Results(0, 0, 0.0, {}).complaints() == ("no test passed",)
    torch = "could not import 'torch': No module named 'torch'"
    assert results.Results(1, 0, 0.0, {torch: 1}).complaints() == ()


def test_what_is_installed_there_follows_from_pyproject_and_holds_no_training_wheel_and_no_torch() -> None:
    lines = wheels.requirements()
    names = [line.split(">")[0].split("=")[0].split("[")[0] for line in lines]
    assert {"cbor2", "cryptography", "numpy", "paho-mqtt", "pillow", "onnxruntime", *wheels.FOR_TESTS} == set(names)
    assert lines[-1] == wheels.ONNXRUNTIME


def test_a_container_is_limited_named_by_a_file_and_sees_only_what_it_is_given(tmp_path: Path) -> None:
    container = Container("image", {"/in": (tmp_path, False), "/out": (tmp_path, True)}, {"A": "b"}, "/out")
    words = " ".join(container.command(("python3", "x.py"), tmp_path / "id"))
    podman = " ".join(engine_words("podman"))
    assert words.startswith(f"{podman} run --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 ")
    assert f"--cidfile {tmp_path}/id -w /out -v {tmp_path}:/in:ro -v {tmp_path}:/out:rw -e A=b" in words
    assert words.endswith(" image python3 x.py")


@pytest.mark.parametrize(("ci", "code", "word"), [("true", 1, "cannot run"), ("", 0, "skipped")])
def test_a_machine_without_the_tools_says_what_to_install_and_fails_only_in_ci(
    tmp_path: Path, ci: str, code: int, word: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.arm64"],
        cwd=ROOT,
        env={"PATH": str(tmp_path), "CI": ci, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(f"arm64: {word}: needs arch-test, ")
    assert "apt-get install" in done.stdout
    for package in machine.TOOLS.values():
        assert package in done.stdout
