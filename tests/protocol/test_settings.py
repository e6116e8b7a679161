"""Settings from TOML: mistakes are refused with the file and the key."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from protocol.errors import ConfigurationError
from protocol.settings import load_settings


@dataclass(frozen=True, slots=True)
class Broker:
    url: str = "auto"


@dataclass(frozen=True, slots=True)
class Settings:
    fleet: str
    rounds: int = 1
    broker: Broker = Broker()

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds: {self.rounds} must be at least 1")


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "fleet.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_settings_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, 'fleet = "home"\n[broker]\nurl = "mqtt://b"\n')
    assert load_settings(Settings, path) == Settings("home", 1, Broker("mqtt://b"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "fleet: missing"),
        ('fleet = "home"\nround = 3', "round: unknown key; known here: broker, fleet, rounds"),
        ('fleet = "home"\nrounds = "3"', "rounds: expected int, found str '3'"),
        ('fleet = "home"\nrounds = true', "rounds: expected int, found bool True"),
        ('fleet = "home"\nrounds = 0', "rounds: 0 must be at least 1"),
        ('fleet = "home"\n[broker]\nport = 1', "broker.port: unknown key; known here: url"),
        ('fleet = "home', "not valid TOML"),
        (b"fleet = '\xff'", "not valid TOML"),
    ],
    ids=lambda v: str(v)[:40],
)
def test_a_mistake_is_refused_by_file_and_key(tmp_path: Path, text: str | bytes, said: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(Settings, path)
    assert str(caught.value).startswith(f"{path}: {said}")


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_named_with_the_option(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot be read .* check the path after --config"):
        load_settings(Settings, tmp_path / name)
