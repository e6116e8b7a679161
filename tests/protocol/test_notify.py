"""What a service manager hears of a daemon: on a real datagram socket, as systemd listens on one."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        yield listening


def heard(manager: socket.socket) -> list[str]:
    said = []
    while True:
        try:
            said.append(manager.recv(1000).decode())
        except BlockingIOError:
            return said


def test_a_manager_hears_ready_status_and_stopping_in_order(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready()
    notifier.status("idle")
    notifier.status("idle")
    notifier.status("training task=run/1")
    notifier.stopping()
    words = [w for w in heard(manager) if w != "WATCHDOG=1"]
    assert words == ["READY=1", "STATUS=idle", "STATUS=training task=run/1", "STOPPING=1"]


def test_an_abstract_name_is_spoken_to_as_well() -> None:
    name = f"sparsefleet-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        Notifier({"NOTIFY_SOCKET": "@" + name}).stopping()
        assert listening.recv(1000) == b"STOPPING=1"


def test_the_watchdog_is_fed_by_turns_that_got_on_and_no_more_often_than_needed(manager: socket.socket) -> None:
    now = 0.0
    environment = {
        "NOTIFY_SOCKET": manager.getsockname(),
        "WATCHDOG_USEC": "40000000",
        "WATCHDOG_PID": str(os.getpid()),
    }
    notifier = Notifier(environment, lambda: now)
    assert notifier.wait_s == 20.0
    notifier.ready()
    assert heard(manager) == ["READY=1", "WATCHDOG=1"]
    # Few at a time: a datagram socket keeps ten.
    for _ in range(5):
        for _ in range(20):
            now += 1.0
            notifier.alive()
        assert heard(manager) == ["WATCHDOG=1"] * 4
    now += 100.0
    assert heard(manager) == [], "who does not get on is not heard"


@pytest.mark.parametrize(
    "environment",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "9", "WATCHDOG_PID": str(os.getpid() + 1)}],
    ids=["none", "no time", "another's"],
)
def test_without_a_watchdog_of_its_own_a_daemon_may_wait_for_ever(environment: dict[str, str]) -> None:
    assert Notifier(dict(environment)).wait_s == float("inf")


def test_no_child_of_the_daemon_can_speak_for_it(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname()}
    Notifier(environment)
    assert environment == {}


def test_a_manager_that_is_gone_stops_nobody(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notifier.ready()
    notifier.stopping()
