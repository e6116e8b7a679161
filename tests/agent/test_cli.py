"""The edge-agent command: help, usage mistakes, configuration mistakes by key, and a process that stops cleanly."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edge_agent import sample, settings
from edge_agent.cli import main
from protocol.errors import ConfigurationError
from protocol.records import read_record
from tests.tiny import write_bundle, write_shard

GOOD = """
device = "device-01"
fleet = "demo"
state = "state"
[broker]
url = "mqtt://127.0.0.1:1883"
[data]
path = "shard.npz"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return path


def test_the_sample_is_a_valid_configuration_that_names_every_default() -> None:
    table = tomllib.loads(sample.SAMPLE)
    read = read_record(settings.AgentSettings, table)
    assert read.training == settings.TrainingSettings()
    assert read.limits == settings.LimitSettings()
    for section in ("training", "limits"):
        assert set(table[section]) == set(settings.__dict__[f"{section.title().rstrip('s')}Settings"].__slots__)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (("device =", "devise ="), "devise: unknown key"),
        (('"device-01"', '"Device 01"'), "device"),
        (('"device-01"', '"all"'), "reserved"),
        (('"device-01"', "7"), "device: expected str"),
        (("mqtt://", "http://"), "mqtt://"),
        (("[data]", "[training]\nthreads = 0\n[data]"), "training.threads: 0"),
        (("[data]", "[training]\nthreads = true\n[data]"), "training.threads: expected int"),
        (("[data]", '[training]\nbackend = "tpu"\n[data]'), "training.backend: 'tpu' is unknown"),
        (("[data]", '[training]\nvariant = "a b"\n[data]'), "training.variant: 'a b' is no name"),
        (("[data]", "longest_retry_s = 0\n[data]"), "broker.longest_retry_s: 0"),
        (("[data]", "[limits]\ndisk_mib = -5\n[data]"), "limits.disk_mib: -5"),
        (('path = "shard.npz"', ""), "path"),
        (('state = "state"', ""), "state: missing"),
        (("device", "= broken"), "not valid TOML"),
    ],
)
def test_a_mistake_in_the_configuration_is_named_by_its_key(
    tmp_path: Path, change: tuple[str, str], names: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings.load(write(tmp_path, GOOD.replace(*change, 1)))
    assert names in str(caught.value)
    assert "agent.toml" in str(caught.value)


def test_usage_and_configuration_mistakes_exit_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["run", "--configuration"])
    assert caught.value.code == 3
    assert main(["run", "--config", str(tmp_path / "nowhere.toml")]) == 3
    assert "nowhere.toml" in capsys.readouterr().err


def test_offline_training_prints_loss_time_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(tmp_path / "bundle")
    shard = write_shard(tmp_path / "shard.npz")
    command = ["train", "--bundle", str(tmp_path / "bundle"), "--data", str(shard), "--steps", "30", "--json"]
    assert main(command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["steps"] == len(facts["loss"]) == 30
    assert facts["loss"][-1] < facts["loss"][0] / 2
    assert facts["peak_mib"] > 0
    assert facts["backend"] == "numpy"
    assert (facts["variant"], facts["trained"]) == ("full", 8)
    assert main([*command, "--variant", "bias"]) == 0
    part = json.loads(capsys.readouterr().out)
    assert (part["variant"], part["trained"]) == ("bias", 2)
    # The bias alone cannot part the classes.
    assert part["loss"][-1] > facts["loss"][0] / 2


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--steps", "0"], "--steps: 0"),
        (["--steps", "5", "--batch-size", "0"], "--batch-size: 0"),
        (["--steps", "5", "--seed", "-1"], "--seed: -1"),
        (["--steps", "5", "--learning-rate", "nan"], "--learning-rate"),
        (["--steps", "5", "--momentum", "1.5"], "momentum: 1.5"),
        (["--steps", "5", "--backend", "tpu"], "tpu"),
        (["--steps", "5", "--variant", "half"], "'half' is not in this bundle; it holds full, bias"),
        (["--steps", "5", "--target", "z"], "z"),
    ],
)
def test_offline_mistakes_are_named_and_exit_with_3(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], names: str
) -> None:
    write_bundle(tmp_path / "bundle")
    shard = write_shard(tmp_path / "shard.npz")
    assert main(["train", "--bundle", str(tmp_path / "bundle"), "--data", str(shard), *arguments]) == 3
    assert names in capsys.readouterr().err


@pytest.mark.real
def test_an_agent_whose_broker_is_down_waits_and_stops_at_once_when_told(tmp_path: Path) -> None:
    config = write(tmp_path, GOOD.replace("1883", "1"))
    process = subprocess.Popen(
        [sys.executable, "-m", "edge_agent", "run", "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if "disconnected" in line:
                assert "mqtt://127.0.0.1:1" in line or "refused" in line.lower()
                break
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
