"""Private brokers: chosen, started, restarted, ended, and never left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordinator import broker as module
from coordinator.broker import BrokerKind, Supervised, find_mosquitto, start_broker
from protocol.errors import ConfigurationError, SparsefleetError
from protocol.mqtt import free_port, parse_url
from tests.conftest import require_broker
from tests.waiting import until

KINDS = pytest.mark.parametrize("kind", ["mosquitto", "embedded"])
pytestmark = pytest.mark.real


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


@KINDS
def test_a_private_broker_serves_when_it_is_returned_and_leaves_nothing_when_closed(
    kind: BrokerKind, tmp_path: Path
) -> None:
    require_broker(kind)
    port = free_port()
    broker = start_broker(kind, port, tmp_path / "state")
    assert listens(port)
    assert broker.url == f"mqtt://127.0.0.1:{port}"
    assert ("for trying out only" in broker.description) == (kind == "embedded")
    broker.close()
    broker.close()
    assert not listens(port)
    assert not module.pid_file(tmp_path / "state").exists()


@KINDS
def test_a_broker_that_dies_is_started_again_after_a_pause(
    kind: BrokerKind, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    require_broker(kind)
    port = free_port()
    broker = start_broker(kind, port, tmp_path)
    assert broker.child is not None
    assert broker.child.process is not None
    now = time.monotonic()
    broker.check(now)
    assert not caplog.messages
    broker.child.process.kill()
    broker.child.process.wait()
    broker.check(now)
    broker.check(now + 0.1)
    assert not listens(port)
    broker.check(now + 1.1)
    until(lambda: listens(port))
    assert [message.split(":")[0] for message in caplog.messages] == ["broker died", "broker restarted"]
    broker.close()


def test_the_pause_grows_with_each_early_death_up_to_a_limit(tmp_path: Path) -> None:
    child = Supervised("a broker", ("/bin/false",), tmp_path / "broker.log")
    now, pauses = 0.0, []
    child.start(now)
    for _ in range(9):
        assert child.process is not None
        child.process.wait()
        child.check(now)
        assert child.restart_at is not None
        pauses.append(child.restart_at - now)
        now = child.restart_at
        child.check(now)
    child.stop()
    assert pauses == sorted(pauses)
    assert pauses[0] == 1.0
    assert pauses[-1] == module.LONGEST_RESTART_S


def test_a_disk_that_takes_no_files_delays_the_restart_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    child = Supervised("a broker", ("/bin/false",), state / "broker.log")
    child.start(0.0)
    assert child.process is not None
    child.process.wait()
    child.check(0.0)
    for file in state.iterdir():
        file.unlink()
    state.rmdir()
    child.check(1.0)
    assert child.restart_at == 1.0 + module.LONGEST_RESTART_S
    assert "cannot be restarted" in caplog.messages[-1]


@KINDS
def test_a_broker_ends_with_its_coordinator_even_if_that_is_killed(kind: BrokerKind, tmp_path: Path) -> None:
    require_broker(kind)
    port = free_port()
    program = (
        "import sys, time, pathlib; from coordinator.broker import start_broker;"
        "start_broker(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]));"
        "print('up', flush=True); time.sleep(60)"
    )
    command = (sys.executable, "-c", program, kind, str(port), str(tmp_path))
    with subprocess.Popen(command, stdout=subprocess.PIPE) as coordinator:
        assert coordinator.stdout is not None
        assert coordinator.stdout.readline() == b"up\n"
        assert listens(port)
        coordinator.send_signal(signal.SIGKILL)
    until(lambda: not listens(port))


def test_a_taken_port_is_named_with_a_remedy(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port} .*in use.*choose another port"):
            start_broker("embedded", port, tmp_path)


@KINDS
def test_a_broker_left_behind_by_another_coordinator_is_named_with_its_process(
    kind: BrokerKind, tmp_path: Path
) -> None:
    require_broker(kind)
    broker = start_broker(kind, free_port(), tmp_path)
    assert broker.child is not None
    assert broker.child.process is not None
    with pytest.raises(ConfigurationError, match=f"another coordinator .*kill {broker.child.process.pid}"):
        start_broker(kind, parse_url(broker.url).port, tmp_path)
    broker.close()


def test_a_stranger_with_the_number_of_the_old_broker_is_not_accused(tmp_path: Path) -> None:
    module.pid_file(tmp_path).write_text(str(os.getpid()))
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(ConfigurationError, match="stop what listens there"),
    ):
        start_broker("embedded", server.getsockname()[1], tmp_path)


def test_a_broker_that_ends_at_once_is_told_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_broker("mosquitto")
    monkeypatch.setattr(module, "MOSQUITTO_CONFIGURATION", "nonsense {port} {host} {max_packet} {user} {access}\n")
    with pytest.raises(SparsefleetError, match=r"ended at once; see .*broker.log \(.*nonsense"):
        start_broker("mosquitto", free_port(), tmp_path)


def test_an_address_is_taken_as_it_is_and_nothing_is_started(tmp_path: Path) -> None:
    broker = start_broker("mqtt://broker.example.org", 1883, tmp_path)
    assert broker.url == "mqtt://broker.example.org:1883"
    assert broker.child is None
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["https://b", "rabbitmq", ""])
def test_a_setting_that_cannot_be_followed_is_refused_with_what_can(setting: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"broker: .* auto, mosquitto or embedded"):
        start_broker(setting, 1883, tmp_path)


def fake_mosquitto(folder: Path, version: str) -> None:
    program = folder / "mosquitto"
    program.write_text(f"#!/bin/sh\necho 'mosquitto version {version}'\nexit 3\n")
    program.chmod(0o755)


def test_an_old_mosquitto_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fake_mosquitto(tmp_path, "1.6.9")
    assert find_mosquitto() is None
    with pytest.raises(ConfigurationError, match="apt install mosquitto"):
        start_broker("mosquitto", free_port(), tmp_path)
    broker = start_broker("auto", free_port(), tmp_path)
    assert broker.description.startswith("embedded")
    broker.close()
    fake_mosquitto(tmp_path, "2.1.0-rc1")
    found = find_mosquitto()
    assert found is not None
    assert found.version == "2.1.0-rc1"


def test_a_log_that_grew_too_long_is_started_anew(tmp_path: Path) -> None:
    log = tmp_path / "broker.log"
    log.write_bytes(b"x" * (module.MAX_LOG_BYTES + 1))
    child = Supervised("a broker", ("/bin/true",), log)
    child.start(0.0)
    child.stop()
    assert log.stat().st_size < module.MAX_LOG_BYTES
