"""Devices as containers: limits that the kernel holds, no network but the link, a disk that loses power."""

import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from devices.engines import disks
from devices.engines.containers import Containers
from devices.engines.engine import EngineError, Limits, Start
from devices.engines.namespaces import Shape, has_netem
from tests.waiting import until

# The first that needs the root makes it.
pytestmark = pytest.mark.timeout(600)
FLEET = f"containers-{os.getpid()}"
LIMITS = Limits(cores=0.5, memory_mib=48, disk_mib=16)
_GREET = 'IO::Socket::INET->new("127.0.0.1:1883")->print("hello")'
_FOREVER = ("sh", "-c", "echo begun; while sleep 1; do :; done")


@pytest.fixture
def device(podman: Containers, image: str, tmp_path: Path) -> Iterator[Start]:
    """A prepared device with limits."""
    etc, state, data = (tmp_path / part for part in ("etc", "state", "data"))
    for place in (etc, state, data):
        place.mkdir()
    start = Start(FLEET, "a", "amd64", LIMITS, etc, state, data, image)
    podman.prepare(start)
    yield start
    podman.remove(FLEET)


def printed(podman: Containers, words: str) -> str:
    command = podman.execute(FLEET, "a", ("sh", "-c", words))
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr


def test_limits_are_those_of_the_kernel_and_a_throttle_is_read_back_and_outlives_a_start(
    podman: Containers, device: Start
) -> None:
    podman.start(device, _FOREVER)
    assert podman.in_force(FLEET, "a").limits == LIMITS
    assert podman.in_force(FLEET, "a").why == {}
    podman.throttle(FLEET, "a", 0.125)
    assert podman.in_force(FLEET, "a").limits.cores == 0.125
    podman.kill(FLEET, "a")
    podman.again(FLEET, "a")
    assert podman.in_force(FLEET, "a").limits.cores == 0.125
    podman.throttle(FLEET, "a", 0.5)
    assert podman.in_force(FLEET, "a").limits == LIMITS


def test_a_limit_that_the_kernel_has_not_as_asked_is_told_with_both_figures(podman: Containers, device: Start) -> None:
    podman.start(replace(device, limits=replace(LIMITS, cores=0.25)), _FOREVER)
    assert podman.in_force(FLEET, "a").why == {}
    assert Containers("podman").in_force(FLEET, "a").limits.cores == 0.25
    podman.throttle(FLEET, "a", 0.125)
    assert podman.in_force(FLEET, "a").why == {}
    # Whoever does not know of the throttle sees what differs.
    assert Containers("podman").in_force(FLEET, "a").why == {"cores": "0.25 was asked for, and the kernel has 0.125"}


def test_a_device_that_takes_more_memory_than_it_has_is_out_of_memory(podman: Containers, device: Start) -> None:
    podman.start(device, ("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"))
    until(lambda: podman.condition(FLEET, "a").state == "ended")
    ended = podman.condition(FLEET, "a")
    assert (ended.exit_code, ended.out_of_memory) == (137, True)


def test_a_child_that_runs_out_of_memory_is_told_while_the_device_goes_on(podman: Containers, device: Start) -> None:
    podman.start(device, ("sh", "-c", "dd if=/dev/zero of=/dev/null bs=200M count=1; echo over; sleep 1000"))
    until(lambda: podman.condition(FLEET, "a").out_of_memory)
    condition = podman.condition(FLEET, "a")
    assert condition.state == "running"
    assert condition.peak_mib is not None
    assert 40 < condition.peak_mib <= 48


def test_inside_it_is_as_on_a_device_no_network_no_root_nothing_to_write_but_its_state(
    podman: Containers, device: Start
) -> None:
    podman.start(device, _FOREVER)
    networks = printed(podman, "tail -n +3 /proc/net/dev | cut -d: -f1")
    assert networks.split() == ["lo"]
    assert printed(podman, "id -u").strip() != "0"
    assert "Read-only" in printed(podman, "touch /usr/x")
    status = dict(line.split(":\t") for line in printed(podman, "cat /proc/1/status").splitlines())
    assert int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    for place in (podman.inside(device).state, Path("/tmp"), Path("/run")):
        written = printed(podman, f"touch {place}/x && echo yes")
        assert ("yes" in written) == (place != Path("/run"))


def test_a_disk_of_its_own_is_full_when_it_is_and_goes_with_the_fleet(podman: Containers, device: Start) -> None:
    podman.start(device, _FOREVER)
    state = podman.inside(device).state
    assert "No space left" in printed(podman, f"dd if=/dev/zero of={state}/much bs=1M count=20")
    assert (device.state / "much").stat().st_size < 16 << 20
    disk = disks.disk_of(FLEET, "a")
    assert disk is not None
    podman.remove(FLEET)
    assert not disk.image.exists()
    assert disks.disk_of(FLEET, "a") is None
    assert list(device.state.iterdir()) == []


def test_a_power_cut_takes_what_was_not_synced(podman: Containers, device: Start) -> None:
    state = podman.inside(device).state
    podman.start(device, ("sh", "-c", f"cd {state}; echo 1 > kept; sync; echo 2 > lost; echo ready; sleep 1000"))
    until((device.state / "lost").exists)
    assert podman.cut_power(FLEET, "a")
    assert podman.condition(FLEET, "a").exit_code == 137
    assert [path.name for path in device.state.iterdir()] == ["kept"]
    podman.again(FLEET, "a")
    until((device.state / "lost").exists)


def test_another_one_with_its_disk_still_mounted_after_a_crash_is_cleaned_up_by_its_name(
    podman: Containers, device: Start
) -> None:
    subprocess.run(["podman", "rm", "--force", f"sparsefleet.{FLEET}.a.link"], check=True, capture_output=True)
    assert FLEET in Containers("podman").fleets()
    Containers("podman").remove(FLEET)
    assert FLEET not in Containers("podman").fleets()
    assert disks.disk_of(FLEET, "a") is None


def test_a_quota_that_the_kernel_refuses_is_said(podman: Containers, device: Start) -> None:
    podman.start(device, _FOREVER)
    with pytest.raises(EngineError, match="cannot be throttled"):
        podman.throttle(FLEET, "a", 1e9)


def test_an_image_that_is_not_there_is_named_with_how_to_make_it(podman: Containers, tmp_path: Path) -> None:
    start = Start(FLEET, "b", "amd64", Limits(), tmp_path, tmp_path, tmp_path, "localhost/sparsefleet-none:none")
    with pytest.raises(EngineError, match=r"sparsefleet-none:none.*fleet-emulate images"):
        podman.prepare(start)


def test_a_check_tries_the_engine_and_finds_its_limits_in_force(podman: Containers) -> None:
    findings = {finding.name: finding for finding in podman.check()}
    assert {"podman", "permission", "container", "limits", "network"} == set(findings)
    assert all(finding.state == "ok" for finding in findings.values()), findings


def test_its_link_is_shaped_by_netem_where_the_kernel_has_it(podman: Containers, device: Start) -> None:
    with podman.listen(FLEET, "a", 1883) as listener:
        if not has_netem():
            with pytest.raises(EngineError, match="proxy alone"):
                podman.shape(FLEET, "a", Shape(latency_ms=100))
            return
        podman.shape(FLEET, "a", Shape(latency_ms=100, jitter_ms=1))
        listener.settimeout(10)
        began = time.monotonic()
        podman.start(device, ("perl", "-MIO::Socket::INET", "-e", _GREET))
        listener.accept()[0].close()
        assert time.monotonic() - began > 0.2


def test_a_device_that_is_called_link_is_taken_away_as_any_other(
    podman: Containers, image: str, tmp_path: Path
) -> None:
    """Its container's name ends as that of a network does."""
    fleet = f"{FLEET}-link"
    etc, state, data = (tmp_path / part for part in ("etc", "state", "data"))
    for place in (etc, state, data):
        place.mkdir()
    start = Start(fleet, "link", "amd64", Limits(), etc, state, data, image)
    try:
        podman.prepare(start)
        podman.start(start, _FOREVER)
        assert podman.devices(fleet) == ("link",)
    finally:
        podman.remove(fleet)
    assert podman.devices(fleet) == ()
