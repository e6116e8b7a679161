"""What a coordinator opens by its settings, and what it says where that is more than it should be."""

import logging
import os
from pathlib import Path

import pytest

from coordinator.access_settings import BrokerSettings, TrustSettings
from coordinator.gate import Gate, open_gate
from coordinator.settings import RoundSettings, Settings, TrainingSettings
from edge_agent import settings as agent_settings
from edge_agent.data import DataSettings
from protocol.errors import ConfigurationError
from tests.conftest import require_broker

pytestmark = pytest.mark.real


def settings(folder: Path, broker: BrokerSettings) -> Settings:
    return Settings(
        "home",
        str(folder / "bundle"),
        RoundSettings(1, 1, 1.0),
        TrainingSettings(1, 0.1, local_steps=1),
        state=str(folder / "state"),
        broker=broker,
        trust=TrustSettings(str(folder / "trust"), port=0),
    )


def opened(folder: Path, broker: BrokerSettings) -> tuple[Gate, str]:
    """What was open, and under which address; it is closed again."""
    with open_gate(settings(folder, broker), folder / "broker") as gate:
        return gate, gate.broker.url


def test_a_private_mosquitto_is_mtls_unless_told_otherwise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_broker("mosquitto")
    gate, url = opened(tmp_path, BrokerSettings(port=0))
    assert url.startswith("mqtts://127.0.0.1:")
    assert gate.enrolment_port
    assert gate.credentials is not None
    assert not caplog.messages


def test_plain_on_loopback_is_a_choice_that_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_broker("mosquitto")
    gate, url = opened(tmp_path, BrokerSettings(port=0, plain="loopback"))
    assert url.startswith("mqtt://127.0.0.1:")
    assert gate.admit("anybody") is None
    assert not (tmp_path / "trust").exists()
    assert not caplog.messages


def test_plain_on_a_network_warns_at_every_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_broker("mosquitto")
    for _ in range(2):
        caplog.clear()
        opened(tmp_path, BrokerSettings(host="0.0.0.0", port=0, plain="trusted-network"))
        assert [record.levelno for record in caplog.records] == [logging.WARNING]
        assert 'broker.plain = "trusted-network": 0.0.0.0 is open to whoever reaches it' in caplog.text


def test_without_a_mosquitto_nothing_but_this_machine_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coordinator.broker.find_mosquitto", lambda: None)
    gate, url = opened(tmp_path, BrokerSettings(port=0))
    assert (url.partition(":")[0], gate.enrolment_port) == ("mqtt", None)
    assert "plain, on this machine only, without identities" in caplog.text
    with pytest.raises(ConfigurationError, match=r"0.0.0.0 is open to other machines, .* install mosquitto"):
        opened(tmp_path, BrokerSettings(host="0.0.0.0", port=0))


def test_what_was_opened_is_closed_when_the_rest_cannot_be(tmp_path: Path) -> None:
    require_broker("mosquitto")
    wanted = settings(tmp_path, BrokerSettings(port=0))
    with open_gate(wanted, tmp_path / "broker") as gate:
        assert gate.enrolment_port is not None
        assert gate.broker.child is not None
        assert gate.broker.child.process is not None
        pid, port = gate.broker.child.process.pid, gate.enrolment_port
        taken = Settings(
            **{name: getattr(wanted, name) for name in Settings.__dataclass_fields__}
            | {"trust": TrustSettings(str(tmp_path / "trust"), port=port)}
        )
        with pytest.raises(ConfigurationError, match=f"trust.port: cannot listen on 127.0.0.1:{port}"):
            open_gate(taken, tmp_path / "broker-2").__enter__()
        assert not (tmp_path / "broker-2" / "broker.pid").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_agent_goes_nowhere_in_the_open_without_being_told() -> None:
    with pytest.raises(ValueError, match=r"mqtt://10.0.0.5:1883 is not encrypted and leaves this machine: .* Enrol"):
        agent_settings.BrokerSettings("mqtt://10.0.0.5:1883")
    told = agent_settings.BrokerSettings("mqtt://10.0.0.5:1883", plain="trusted-network")
    assert agent_settings.AgentSettings("pi-1", "home", "state", told, DataSettings("x.npz")).broker == told
