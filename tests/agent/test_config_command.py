"""edge-agent config: the sample has every key, show says where each value is from, and secrets stay out."""

import json
import re
import time
import tomllib
from pathlib import Path

import pytest

from edge_agent import settings
from edge_agent.cli import main
from edge_agent.redaction import HIDDEN, redacted, redacted_value
from edge_agent.sample import SAMPLE
from edge_agent.settings import PREFIX, AgentSettings, layers
from protocol.layers import default_of, known_keys, read_settings, variable_of
from tests.agent.test_cli import GOOD, write

# Keys that only make sense for some data, and are shown as comments.
COMMENTED = {"data.source", "data.columns", "data.hold_out_path"}


def test_the_sample_has_every_key_with_its_default_and_what_it_means(tmp_path: Path) -> None:
    table = tomllib.loads(SAMPLE)
    keys = known_keys(AgentSettings)
    for key in keys:
        *above, last = key.split(".")
        if key in COMMENTED or key.startswith(("data.wav.", "data.images.")):
            assert re.search(rf"(?m)^# {key.removeprefix('data.')}(\.x)? = .* # ", SAMPLE), key
            continue
        found = table
        for part in above:
            found = found[part]
        assert last in found, key
        default = default_of(AgentSettings, key)
        if default is not None:
            assert found[last] == (list(default) if isinstance(default, tuple) else default), key
    for line in SAMPLE.splitlines():
        assert not re.match(r"#? ?\w+ = ", line) or re.search(r"\S  +# .{10}|= .*# ", line), line
    path = write(tmp_path, SAMPLE)
    assert read_settings(AgentSettings, layers(path, {})).device == "kitchen-pi"


def test_every_key_has_a_variable_of_its_own() -> None:
    keys = known_keys(AgentSettings)
    assert len({variable_of(key, PREFIX) for key in keys}) == len(keys)


def test_show_says_where_every_value_is_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, GOOD)
    (tmp_path / "agent.d").mkdir()
    (tmp_path / "agent.d" / "10-site.toml").write_text("[limits]\ndisk_mib = 64\n")
    monkeypatch.setenv("EDGE_AGENT_TRAINING_THREADS", "2")
    assert main(["config", "show", "--config", str(config), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["device"] == {"value": "device-01", "source": f"{config}:2"}
    assert said["limits.disk_mib"] == {"value": 64, "source": f"{tmp_path}/agent.d/10-site.toml:2"}
    assert said["training.threads"] == {"value": 2, "source": "EDGE_AGENT_TRAINING_THREADS"}
    assert said["training.backend"] == {"value": "auto", "source": "default"}
    assert main(["config", "show", "--config", str(config)]) == 0
    assert re.search(r"training.threads +2 +EDGE_AGENT_TRAINING_THREADS", capsys.readouterr().out)


def test_validate_names_a_mistake_and_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path, GOOD)
    assert main(["config", "validate", "--config", str(config)]) == 0
    assert "no mistake found" in capsys.readouterr().out
    write(tmp_path, GOOD + "[training]\nthreats = 2\n")
    assert main(["config", "validate", "--config", str(config), "--json"]) == 3
    assert "agent.toml:10: training.threats: unknown key; did you mean training.threads?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        "url = mqtts://user:canary@host",
        "https://x:canary@host/path?a=b",
        "password = canary",
        '{"api_key": "canary, and more"}',
        "secret: 'canary'",
        "PASSWORD=canary",
        "enroll --token canary --url x",
        "sft1canaryaaaaaaaaaaaaaaaaaaaaaaaa",
        "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----\nrest",
        "-----BEGIN EC PRIVATE KEY-----\ncanary, cut short",
        'password = """\none "line"\ncanary"""',
        'password = """\ncanary, cut short',
        "password = '''\nit's\ncanary'''",
        'tokens = ["first", "canary"]',
        'tokens = [\n  "fir]st",  # don\'t\n  "canary",\n]',
        'tokens = [["first"], ["canary"]]',
        'tokens = ["first", "canary',
        '{"tokens": ["first", {"of": "x"}, "canary"], "threads": 2}',
        '"credentials": {"user": "x", "word": "canary"}',
        'credentials = {user = "x", word = "canary"}',
        "Authorization: Bearer canary",
        'curl -H "Authorization: Basic canary" https://host',
        "{'Authorization': 'Bearer canary'}",
        "sent Bearer canary-of-eight with it",
        "PASSWORD=two canary",
        "PASSWORD='two'\" canary\"",
        'PASSWORD=say "canary" twice',
        'password = "canary, cut short',
        "aws_access_key = canary",
        "AWS_SECRET_ACCESS_KEY=canary",
        "access-key: canary",
        "X-Api-Key: canary",
        "API key: canary",
        '"private-key": "canary"',
        'wifi_psk = "canary"',
        "https://host/path?x=1&access_token=canary",
        '{"log": "bad \\"password\\": \\"two canary\\" there"}',
        '"password"=>"two canary"',
        "--broker-password 'two canary' --url x",
    ],
)
def test_secrets_are_taken_out_of_text(text: str) -> None:
    assert "canary" not in redacted(text)
    assert HIDDEN in redacted(text)


def test_a_list_of_secrets_ends_where_it_ends() -> None:
    text = 'tokens = [\n  ["a]", "b"],\n]\nthreads = 2\n[limits]\ndisk_mib = 64\n'
    assert redacted(text) == f"tokens = {HIDDEN}\nthreads = 2\n[limits]\ndisk_mib = 64\n"
    assert redacted('password = """a\nb"""\nthreads = 2') == f"password = {HIDDEN}\nthreads = 2"


def test_json_with_a_secret_in_its_text_is_json_without_it() -> None:
    said = {"log": "PASSWORD=two words", "rows": ["Authorization: Bearer abcdefgh"], "token": "a, b", "threads": 2}
    hidden = {"log": f"PASSWORD={HIDDEN}", "rows": [f"Authorization: {HIDDEN}"]}
    found = redacted(json.dumps({**said, "last": "token: x"}, indent=1))
    assert json.loads(found.replace(f'"token": {HIDDEN}', '"token": 0')) == {
        **said,
        **hidden,
        "token": 0,
        "last": f"token: {HIDDEN}",
    }


def test_a_long_text_is_gone_through_in_one_go() -> None:
    for text in ("a." * 100_000, "token" * 50_000, "token = [" * 20_000, 'token="' * 50_000, "--a" * 50_000):
        started = time.process_time()
        redacted(text)
        assert time.process_time() - started < 5.0, text[:20]


def test_what_is_no_secret_stays() -> None:
    for text in ('url = "mqtts://host:8883"', "threads = 2", "update kept task=r/1", "the token is used up"):
        assert redacted(text) == text
    assert redacted_value("broker_password", 7) == HIDDEN
    assert redacted_value("inputs", ("x", "mqtt://u:p@h")) == ["x", f"mqtt://{HIDDEN}@h"]
    assert redacted_value("threads", 2) == 2
    assert redacted_value("labels", {"a": "b", "token": "c"}) == {"a": "b", "token": HIDDEN}


def test_a_command_by_hand_sees_the_variables_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, variables = write(tmp_path, GOOD), tmp_path / "default"
    variables.write_text('# ours\nEDGE_AGENT_DATA_PATH="of service.npz"\n EDGE_AGENT_LIMITS_DISK_MIB=77 \nPATH=/\n')
    monkeypatch.setattr(settings, "SERVICE_VARIABLES", variables)
    # Of the service's own configuration alone.
    assert settings.load(config).data.path == "shard.npz"
    monkeypatch.setattr(settings, "CONFIG", config)
    found = settings.load(config)
    assert (found.data.path, found.limits.disk_mib) == ("of service.npz", 77)
    monkeypatch.setenv("EDGE_AGENT_DATA_PATH", "mine.npz")
    assert settings.load(config).data.path == "mine.npz"
    variables.unlink()
    assert settings.load(config).limits.disk_mib != 77
