"""What of the packages needs no container: pins, scripts, units, and limits that become a unit's."""

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from edge_agent.service_limits import BESIDES_TRAINING_MIB, drop_in, main
from protocol.errors import ConfigurationError, NotEnrolledError
from protocol.ownership import as_owner

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNITS = {name: PACKAGING / name / f"{name}.service" for name in ("edge-agent", "fleet-coordinator")}
# Of systemd-analyze security, 0 to 10; 2.0 is where it begins to say "OK" rather than "MEDIUM" with room to spare.
MOST_EXPOSED = 2.0


def pins(package: str) -> Mapping[str, Version]:
    lines = (PACKAGING / package / "requirements.txt").read_text().splitlines()
    found = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name: Version(version) for name, version in found}


@pytest.mark.parametrize(("package", "extra"), [("edge-agent", "agent"), ("fleet-coordinator", "coordinator")])
def test_a_package_pins_what_its_extra_asks_for(package: str, extra: str) -> None:
    found = pins(package)
    for requirement in map(Requirement, (*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra])):
        assert found[requirement.name] in requirement.specifier, requirement
    assert "torch" not in found


def test_both_packages_agree_on_what_both_hold() -> None:
    agent, coordinator = pins("edge-agent"), pins("fleet-coordinator")
    assert {name: coordinator[name] for name in agent} == agent


def test_the_scripts_are_clean_to_shellcheck() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    scripts = [*PACKAGING.glob("*.sh"), *(PACKAGING / name for name in ("postinst", "prerm", "postrm"))]
    scripts.append(PACKAGING / "edge-agent/limits-generator")
    done = subprocess.run(["shellcheck", *map(str, scripts)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_the_installer_says_how_it_is_used() -> None:
    said = subprocess.run(["sh", str(PACKAGING / "install.sh"), "--help"], capture_output=True, text=True, timeout=10)
    assert said.returncode == 0
    assert "install.sh [OPTIONS] URL-OR-FILE TOKEN" in said.stdout
    assert "example" in said.stdout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system with both units, the commands that they start, and systemd's own units."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd is not installed")
    shutil.copytree("/lib/systemd/system", tmp_path / "lib/systemd/system", symlinks=True)
    (tmp_path / "usr/bin").mkdir(parents=True)
    for name, unit in UNITS.items():
        shutil.copy(unit, tmp_path / "lib/systemd/system")
        (tmp_path / "usr/bin" / name).touch(0o755)
    return tmp_path


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_is_verified_by_systemd_with_limits_of_the_configuration(root: Path, name: str) -> None:
    if name == "edge-agent":
        (root / "agent.toml").write_text("[limits]\nmemory_mib = 256\ncpu_percent = 50\n")
        assert main([str(root / "agent.toml"), str(root / "lib/systemd/system")]) == 0
    unit = root / f"lib/systemd/system/{name}.service"
    verify = ["systemd-analyze", "verify", f"--root={root}", "--man=no", str(unit)]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", UNITS)
def test_a_unit_leaves_little_to_whoever_takes_the_service_over(root: Path, name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--root={root}", "--no-pager", f"{name}.service"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout + done.stderr
    assert float(found[1]) <= MOST_EXPOSED


def test_what_another_start_would_not_change_is_not_started_again() -> None:
    agent, coordinator = (unit.read_text() for unit in UNITS.values())
    mistakes = f"{ConfigurationError.exit_code} {NotEnrolledError.exit_code}"
    assert f"RestartPreventExitStatus={mistakes}\n" in agent
    assert f"RestartPreventExitStatus={ConfigurationError.exit_code}\n" in coordinator


def test_limits_of_the_configuration_become_limits_of_the_unit() -> None:
    assert drop_in({}) is None
    assert drop_in({"memory_mib": 0, "cpu_percent": 0, "disk_mib": 512}) is None
    text = drop_in({"memory_mib": 256, "cpu_percent": 150})
    assert text is not None
    assert text.splitlines()[1:] == ["[Service]", f"MemoryMax={256 + BESIDES_TRAINING_MIB}M", "CPUQuota=150%"]


def test_files_of_agent_d_have_the_last_word_on_limits(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("[limits]\nmemory_mib = 64\n")
    (tmp_path / "agent.d").mkdir()
    (tmp_path / "agent.d/10-more.toml").write_text("[limits]\nmemory_mib = 100\n")
    assert main([str(tmp_path / "agent.toml"), str(tmp_path / "units")]) == 0
    text = (tmp_path / "units/edge-agent.service.d/50-limits.conf").read_text()
    assert f"MemoryMax={100 + BESIDES_TRAINING_MIB}M" in text


def test_variables_of_the_service_have_the_last_word_on_limits_and_need_no_file(tmp_path: Path) -> None:
    variables = tmp_path / "default"
    variables.write_text('# ours\nEDGE_AGENT_LIMITS_MEMORY_MIB="100"\nEDGE_AGENT_LIMITS_CPU_PERCENT=many\nOTHER=1\n')
    assert main([str(tmp_path / "agent.toml"), str(tmp_path / "units"), str(variables)]) == 0
    text = (tmp_path / "units/edge-agent.service.d/50-limits.conf").read_text()
    assert text.splitlines()[1:] == ["[Service]", f"MemoryMax={100 + BESIDES_TRAINING_MIB}M"]
    assert main([str(tmp_path / "agent.toml"), str(tmp_path / "none"), str(tmp_path / "absent")]) == 0
    assert not (tmp_path / "none").exists()


def test_a_configuration_that_cannot_be_read_sets_no_limits_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "agent.toml").write_text("limits = [")
    assert main([str(tmp_path / "agent.toml"), str(tmp_path / "units")]) == 1
    assert "no limits are set" in capsys.readouterr().err
    assert not (tmp_path / "units").exists()


def test_roots_command_makes_files_that_the_folders_owner_can_use(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    nobody = 65534
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(folder, nobody, nobody)
        # What is above it lets others through, as /var/lib does.
        for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            above.chmod(0o755)
    with as_owner(folder):
        (folder / "identity").touch()
    assert (folder / "identity").stat().st_uid == (nobody if is_root else os.geteuid())
    assert (os.geteuid() == 0) == is_root
