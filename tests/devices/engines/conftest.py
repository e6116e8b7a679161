"""Engines of containers for tests: podman as it is here, and docker's command on podman's service."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.engines.containers import Containers
from devices.images.cache import cache_folder
from tests.debian import boards
from tests.waiting import until


@pytest.fixture(scope="session")
def image() -> str:
    """A minimal Debian root, without our agent."""
    if os.geteuid() != 0:
        pytest.skip("containers with limits need root")
    for tool in ("podman", "mmdebstrap"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    return boards._blank(cache_folder())


@pytest.fixture(scope="session")
def podman(image: str) -> Containers:
    return Containers("podman")


@pytest.fixture(scope="session")
def docker(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    """Docker's own command, served by podman, which speaks its language."""
    if shutil.which("docker") is None:
        pytest.skip("docker is not installed")
    socket = tmp_path_factory.mktemp("docker") / "socket"
    log = socket.with_suffix(".log")
    with log.open("wb") as out:
        service = subprocess.Popen(
            ["podman", *_runtime(), "system", "service", "--time", "0", f"unix://{socket}"], stdout=out, stderr=out
        )
    patch = pytest.MonkeyPatch()
    patch.setenv("DOCKER_HOST", f"unix://{socket}")
    try:
        until(socket.exists, "podman serves docker's command")
        yield Containers("docker")
    finally:
        patch.undo()
        service.terminate()
        service.wait()


def _runtime() -> tuple[str, ...]:
    return ("--runtime", "runc") if Path("/usr/sbin/runc").exists() or shutil.which("runc") else ()
