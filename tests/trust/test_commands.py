"""The commands of enrolment, as operators and devices call them."""

import io
import json
import os
import stat
import tomllib
from pathlib import Path
from typing import Any

import pytest

from coordinator import cli as coordinator
from coordinator import key_options
from edge_agent import cli as agent
from edge_agent import settings as agent_settings
from protocol.errors import ConfigurationError, NotEnrolledError, NothingToDoError, UnreachableError
from protocol.token import parse_token
from tests.coordinator.simulation import Simulation
from tests.trust.office import Office

CONFIG = """\
fleet = "home"
bundle = "bundle"
state = "state"
[rounds]
count = 3
devices = 3
deadline_s = 60
[training]
batch_size = 4
learning_rate = 0.1
local_steps = 2
[trust]
folder = "trust"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "coordinator.toml"
    path.write_text(CONFIG)
    return path


def said(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def test_tokens_are_printed_a_line_each_and_nothing_else(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert coordinator.main(["token", "--config", str(config), "--count", "3", "--ttl", "2d"]) == 0
    captured = capsys.readouterr()
    tokens = [parse_token(line) for line in captured.out.splitlines()]
    assert len({token.secret for token in tokens}) == 3
    assert len({token.fingerprint for token in tokens}) == 1
    assert "edge-agent enroll --url THIS-HOST:8884 --device NAME --token TOKEN" in captured.err
    assert coordinator.main(["token", "--config", str(config), "--json"]) == 0
    assert parse_token(said(capsys)["tokens"][0]).fingerprint == tokens[0].fingerprint, "one CA a fleet"
    assert stat.S_IMODE((config.parent / "trust").stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--count", "0"], "--count: 0 is outside 1..10000"),
        (["--ttl", "1"], "--ttl: '1' must be a number with s, m, h or d"),
        (["--ttl", "31d"], "at most 30d"),
        (["--device", "Pi"], "--device: 'Pi' must be 2 to 63"),
        (["--device", "pi-1", "--count", "2"], "--count: 2 tokens for one device"),
    ],
)
def test_a_wrong_option_is_named(
    options: list[str], words: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert coordinator.main(["token", "--config", str(config), *options]) == ConfigurationError.exit_code
    assert words in capsys.readouterr().err


def test_a_device_enrols_with_two_commands_and_finds_its_configuration_written(
    office: Office, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert coordinator.main(["token", "--config", str(config)]) == 0
    token = capsys.readouterr().out.strip()
    path = tmp_path / "device" / "agent.toml"
    path.parent.mkdir()
    command = ["enroll", "--url", office.url, "--token", token, "--device", "kitchen-pi", "--config", str(path)]
    assert agent.main(command) == 0
    captured = capsys.readouterr()
    assert "enrolled kitchen-pi in fleet home" in captured.out
    assert token not in captured.out + captured.err
    settings = agent_settings.load(path)
    assert (settings.device, settings.fleet, settings.broker.url) == ("kitchen-pi", "home", "mqtts://127.0.0.1:8883")
    assert agent.main(["renew", "--config", str(path)]) == 0
    assert "renewed kitchen-pi until" in capsys.readouterr().out
    # The second time there is a configuration, which is used and left alone.
    before = path.read_bytes()
    again = office.token(device="kitchen-pi").text
    (tmp_path / "token").write_text(again + "\n")
    assert (
        agent.main(
            ["enroll", "--url", office.url, "--token-file", str(tmp_path / "token"), "--config", str(path), "--json"]
        )
        == 0
    )
    assert said(capsys)["config_made"] is False
    assert path.read_bytes() == before


def test_a_token_comes_from_standard_input_too(office: Office, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(office.token().text + "\n"))
    command = ["enroll", "--url", office.url, "--token-file", "-", "--device", "pi-1"]
    assert agent.main([*command, "--config", str(tmp_path / "agent.toml")]) == 0
    assert tomllib.loads((tmp_path / "agent.toml").read_text())["device"] == "pi-1"


def test_the_configuration_that_enrolment_writes_can_be_read_by_the_services_user(
    office: Office, tmp_path: Path
) -> None:
    before = os.umask(0o077)
    try:
        command = ["enroll", "--url", office.url, "--token", office.token().text, "--device", "pi-1"]
        assert agent.main([*command, "--config", str(tmp_path / "agent.toml")]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "agent.toml").stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"--token": "sft1nonsense"}, ConfigurationError.exit_code, "--token: is 12 characters long"),
        ({"--device": "All"}, ConfigurationError.exit_code, "--device: 'All' must be 2 to 63"),
        ({"--url": "https://x/"}, ConfigurationError.exit_code, "--url: 'https://x/' must be HOST:PORT"),
        ({"--url": "127.0.0.1:1"}, UnreachableError.exit_code, "is fleet-coordinator running there"),
        ({"--device": "enroll"}, ConfigurationError.exit_code, "is reserved"),
    ],
)
def test_a_mistake_at_the_device_is_named_and_leaves_no_configuration(
    change: dict[str, str],
    code: int,
    words: str,
    office: Office,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = tmp_path / "agent.toml"
    options = {"--url": office.url, "--token": office.token().text, "--device": "pi-1", "--config": str(config)}
    words_of = [word for pair in (options | change).items() for word in pair]
    assert agent.main(["enroll", *words_of]) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert options["--token"] not in captured.err
    assert not config.exists()


def test_a_refusal_is_exit_code_5(office: Office, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    token = office.token(device="pi-2").text
    command = ["enroll", "--url", office.url, "--token", token, "--device", "pi-1", "--config"]
    assert agent.main([*command, str(tmp_path / "agent.toml")]) == NotEnrolledError.exit_code
    assert "this token is for another device (device)" in capsys.readouterr().err


def test_revoking_who_is_not_enrolled_is_nothing_to_do(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["devices", "revoke", "pi-1", "--config", str(config)]
    assert coordinator.main(command) == NothingToDoError.exit_code
    assert not (config.parent / "trust").exists()
    assert "pi-1: has no identity that could be revoked" in capsys.readouterr().err
    nowhere = config.parent / "etc" / "coordinator.toml"
    monkeypatch.setattr(key_options, "CONFIG", nowhere)
    assert coordinator.main(["devices"]) == ConfigurationError.exit_code
    assert f"{nowhere}: cannot be read (No such file or directory); check the path" in capsys.readouterr().err


def test_devices_are_listed_with_their_identity_those_too_that_never_came(
    tmp_path: Path, office: Office, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = Simulation.make(tmp_path)
    fleet.until(lambda: bool(fleet.committed))
    fleet.coordinator.stop()
    state = fleet.store.updates.root.parent
    fleet.store.close()
    config.write_text(CONFIG.replace('"state"', f'"{state}"'))
    for device in ("dev-0", "dev-1", "never-came"):
        office.enrol(device, tmp_path / device)
    assert coordinator.main(["devices", "revoke", "dev-1", "--config", str(config), "--json"]) == 0
    assert said(capsys) == {"device": "dev-1", "revoked": 1}
    assert coordinator.main(["devices", "--config", str(config), "--json"]) == 0
    rows = {row["device"]: row for row in said(capsys)["devices"]}
    found = {device: row.get("identity") for device, row in rows.items()}
    enrolled = {"dev-0": "valid", "dev-1": "revoked", "never-came": "valid"}
    assert found == dict.fromkeys(rows) | enrolled
    assert len(rows) > len(enrolled)
    assert rows["never-came"]["present"] is False
    assert coordinator.main(["devices", "--config", str(config)]) == 0
    table = capsys.readouterr().out
    assert "never-came" in table
    assert "revoked" in table
