"""The compose file of a fleet, as podman-compose and a YAML parser read it."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from devices.engines.compose import HOST, Service, compose_text
from devices.engines.engine import EngineError, Limits, Start
from protocol.errors import ConfigurationError

COORDINATOR = ("fleet-coordinator", "run", "--config", "fleet/coordinator.toml")
LINK = ("fleet-emulate", "proxy", "--listen", "0.0.0.0:18001", "--to", "127.0.0.1:8883", "--profile", "lte-poor")


def service(folder: Path, device: str, limits: Limits, image: str | None = "localhost/agent:1") -> Service:
    etc, state, data = (folder / device / part for part in ("etc", "state", "data"))
    start = Start("fleet", device, "arm64", limits, etc, state, data, image, None, {"LIBRARY": "/usr/$LIB/x.so"})
    return Service(start, LINK, (999, 998))


def written(folder: Path) -> str:
    limited = service(folder, "zero", Limits(cores=0.125, memory_mib=512))
    return compose_text("fleet", COORDINATOR, (limited, service(folder, "open", Limits())))


def test_every_device_is_a_service_with_its_limits_and_confined_as_by_us(tmp_path: Path) -> None:
    read: dict[str, Any] = yaml.safe_load(written(tmp_path))
    assert read["name"] == "fleet"
    assert list(read["services"]) == ["zero", "open"]
    zero = read["services"]["zero"]
    assert (zero["cpus"], zero["mem_limit"], zero["memswap_limit"]) == (0.125, "512m", "512m")
    assert (zero["read_only"], zero["cap_drop"], zero["user"]) == (True, ["ALL"], "999:998")
    assert zero["platform"] == "linux/arm64"
    assert [volume["read_only"] for volume in zero["volumes"]] == [False, False, True]
    assert zero["environment"]["LIBRARY"] == "/usr/$$LIB/x.so"
    assert "cpus" not in read["services"]["open"]
    assert "mem_limit" not in read["services"]["open"]


def test_its_head_says_what_to_start_before_and_what_compose_does_not_do(tmp_path: Path) -> None:
    head = written(tmp_path).partition("\nname:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    for said in (" ".join(COORDINATOR), " ".join(LINK), "faults", "calibration", HOST):
        assert said in head


def test_podman_compose_makes_containers_with_these_limits_of_it(tmp_path: Path) -> None:
    if shutil.which("podman-compose") is None:
        pytest.skip("podman-compose is not installed")
    file = tmp_path / "compose.yaml"
    file.write_text(written(tmp_path))
    words = ["podman-compose", "--file", str(file), "--dry-run", "up", "--detach"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    (zero,) = (line for line in said.splitlines() if "podman" in line and "sparsefleet.device=zero" in line)
    for part in (
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges:true",
        "--cpus 0.125",
        "-m 512m",
        "LIBRARY=/usr/$LIB/x.so",
    ):
        assert part in zero, zero


def test_a_device_without_an_image_and_a_fleet_without_containers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="needs an image"):
        compose_text("fleet", COORDINATOR, (service(tmp_path, "a", Limits(), None),))
    with pytest.raises(ConfigurationError, match="no device"):
        compose_text("fleet", COORDINATOR, ())
