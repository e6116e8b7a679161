"""The footprint benchmark without pip's downloads: what is installed, weighed and measured."""

import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from benchmarks import agent_footprint, bundles
from benchmarks.environments import Environment, copy_sources, install, requirements
from benchmarks.footprint import MODEL, Task, measure
from devices.datasets import PROJECT_ROOT
from protocol.errors import ConfigurationError, SparsefleetError

KEYS = ["environment", "install_mib", "import_s", "first_step_s", "pss_mib"]


def test_torch_is_what_the_project_pins_and_an_agent_is_the_project_with_its_extra() -> None:
    extras = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    torch, numpy = requirements("torch", PROJECT_ROOT)
    assert torch in extras["export"]
    assert (torch.split("==")[0], numpy) == ("torch", "numpy")
    assert requirements("agent-ort-training", PROJECT_ROOT) == (f"{PROJECT_ROOT}[agent-ort-training]",)


def test_an_extra_that_is_not_there_is_refused_and_the_known_ones_are_named() -> None:
    # pip itself would only warn, and the row would be of an environment that cannot train.
    with pytest.raises(ConfigurationError, match=r"no-such: .*no such extra, only .*export"):
        requirements("no-such", PROJECT_ROOT)


def test_what_pip_cannot_get_is_an_error_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(SparsefleetError, match=r"(?s)cannot install no-such-package; check the network.*No matching"):
        install(Path(sys.executable), ("no-such-package",))


def test_the_size_is_that_of_all_files_but_pips_own(tmp_path: Path) -> None:
    for name, size in {
        "numpy/a.so": 3,
        "numpy/core/b.py": 1,
        "six.py": 2,
        "pip/c.py": 50,
        "pip-23.dist-info/d": 9,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size << 20))
    assert Environment("torch", Path(sys.executable), tmp_path).size_mib() == pytest.approx(6)


def test_the_copied_sources_are_what_a_wheel_is_built_of(tmp_path: Path) -> None:
    copy = copy_sources(PROJECT_ROOT, tmp_path / "sources")
    held = {path.name for path in copy.iterdir()}
    assert {"pyproject.toml", "README.md", "LICENSE", "edge_agent", "protocol", "sparse"} <= held
    assert not held & {"tests", "benchmarks", ".git"}


@pytest.mark.parametrize("name", ["agent-ort-training", "torch"])
def test_a_row_is_measured_with_real_processes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundles.write(MODEL, tmp_path / "b", 32, seed=1)
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "only.py").write_bytes(bytes(1 << 20))
    monkeypatch.setenv("PYTHONPATH", str(PROJECT_ROOT))
    row = measure(Environment(name, Path(sys.executable), packages), Task(tmp_path / "b", repeats=0))
    assert list(row) == KEYS
    assert (row["environment"], row["install_mib"]) == (name, 1.0)
    assert 0 < row["import_s"] < row["first_step_s"]
    assert row["pss_mib"] > 20


def test_a_running_agent_is_measured_at_rest_and_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_footprint, "QUICK_STEPS", 40)
    monkeypatch.setattr(agent_footprint, "QUICK_QUIET_S", 1.0)
    bundles.write(MODEL, tmp_path / "b", 32, seed=1)
    rows = agent_footprint.measure("this", Path(sys.executable), tmp_path / "b", tmp_path / "home", quick=True)
    idle, training = rows
    assert [row["state"] for row in rows] == ["idle", "training"]
    assert 10 < idle["pss_mib"] < 60
    assert 20 < training["child_mib"] < training["pss_mib"] < 120
    assert idle["pss_mib"] < training["agent_mib"] + 10
    assert idle["wakeups_per_s"] < 5


def test_an_environment_that_cannot_train_is_told_with_what_it_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT_ROOT))
    with pytest.raises(SparsefleetError, match=r"(?s)^agent: exit code 3: .*absent: not a bundle"):
        measure(Environment("agent", Path(sys.executable), tmp_path), Task(tmp_path / "absent", repeats=0))


def test_versions_are_read_of_the_environments_own_packages() -> None:
    here = Environment("torch", Path(sys.executable), Path(sysconfig.get_paths()["purelib"]))
    assert {"numpy", "torch"} <= set(here.versions())
