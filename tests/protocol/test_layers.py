"""Settings in layers: later ones win, each value knows its source, and mistakes are named by source and key."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from protocol.errors import ConfigurationError
from protocol.layers import Layers, default_of, known_keys, read_layers, read_settings, variable_of

PREFIX = "BOARD_"


@dataclass(frozen=True, slots=True)
class Broker:
    url: str
    retry_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Training:
    threads: int = 1
    names: tuple[str, ...] = ("x",)
    target: str | tuple[str, ...] = "y"
    mode: Literal["on", "off"] = "on"
    fast: bool = False

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ValueError(f"threads: {self.threads} must be at least 1")


@dataclass(frozen=True, slots=True)
class Settings:
    device: str
    broker: Broker
    training: Training = field(default_factory=Training)
    note: str | None = None


MAIN = """\
# Comments and blank lines are no values.

device = "one"
note = '''
device = "not this one"
'''
[broker]
url = "mqtt://a"
[training]
names = [
  "a",
  "b",
]
threads = 2
"""


def layers(folder: Path, main: str = MAIN, *, more: dict[str, str] | None = None, **environ: str) -> Layers:
    (folder / "board.toml").write_text(main)
    for name, text in (more or {}).items():
        (folder / "board.d").mkdir(exist_ok=True)
        (folder / "board.d" / name).write_text(text)
    return read_layers(Settings, folder / "board.toml", environ, PREFIX)


def test_later_files_win_in_the_order_of_their_names_and_variables_win_over_all(tmp_path: Path) -> None:
    found = layers(
        tmp_path,
        more={"20.toml": "[training]\nthreads = 4", "10.toml": "[broker]\nretry_s = 9\n[training]\nthreads = 3"},
        BOARD_BROKER_URL="mqtt://b",
    )
    read = read_settings(Settings, found)
    assert read.broker == Broker("mqtt://b", 9.0)
    assert (read.training.threads, read.training.names) == (4, ("a", "b"))


def test_every_value_knows_the_line_or_the_variable_that_it_is_from(tmp_path: Path) -> None:
    found = layers(tmp_path, more={"20.toml": "\n[training]\nthreads = 4"}, BOARD_BROKER_URL="mqtt://b")
    main = tmp_path / "board.toml"
    assert found.source("device") == f"{main}:3"
    assert found.source("note") == f"{main}:4"
    assert found.source("training.names") == f"{main}:10"
    assert found.source("training.threads") == f"{tmp_path}/board.d/20.toml:3"
    assert found.source("broker.url") == "BOARD_BROKER_URL"
    assert found.source("broker.retry_s") is None


def test_a_variable_is_read_as_its_keys_type_and_an_empty_one_is_not_given(tmp_path: Path) -> None:
    found = layers(
        tmp_path,
        BOARD_TRAINING_NAMES="p, q",
        BOARD_TRAINING_TARGET="r,s",
        BOARD_TRAINING_MODE="off",
        BOARD_TRAINING_FAST="true",
        BOARD_BROKER_RETRY_S="3",
        BOARD_NOTE="7",
        BOARD_DEVICE="",
    )
    read = read_settings(Settings, found)
    assert read.training == Training(2, ("p", "q"), ("r", "s"), "off", True)
    assert (read.broker.retry_s, read.note, read.device) == (3.0, "7", "one")
    one_name = read_settings(Settings, layers(tmp_path, BOARD_TRAINING_TARGET="r")).training.target
    assert one_name == "r"


@pytest.mark.parametrize(
    ("main", "more", "environ", "said"),
    [
        (MAIN + "thread = 3", {}, {}, "board.toml:15: training.thread: unknown key; "),
        (MAIN + "thread = 3", {}, {}, "did you mean training.threads?"),
        ("threads = 3\n" + MAIN, {}, {}, "did you mean training.threads?"),
        (MAIN, {"1.toml": "[broker]\nport = 1"}, {}, "1.toml:2: broker.port: unknown key; known here: broker.retry_s"),
        (MAIN, {}, {"BOARD_TRAINING_TREADS": "3"}, "BOARD_TRAINING_TREADS: unknown variable; known here: "),
        (MAIN, {}, {"BOARD_TRAINING_TREADS": "3"}, "did you mean BOARD_TRAINING_THREADS?"),
        (MAIN, {}, {"BOARD_TRAINING_THREADS": "many"}, "BOARD_TRAINING_THREADS: 'many' is no value"),
        (MAIN, {}, {"BOARD_TRAINING_THREADS": "0"}, "BOARD_TRAINING_THREADS: training.threads: 0 must be at least 1"),
        (MAIN, {"1.toml": "[training]\n\nthreads = 0"}, {}, "1.toml:3: training.threads: 0 must be at least 1"),
        (MAIN.replace("[broker]\n", ""), {}, {}, "url: unknown key"),
        ('[broker]\nurl = "x"', {}, {}, "board.toml: device: missing; set it there"),
        (MAIN, {"1.toml": "= 3"}, {}, "1.toml: not valid TOML"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_mistake_is_named_by_source_and_key(
    tmp_path: Path, main: str, more: dict[str, str], environ: dict[str, str], said: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_settings(Settings, layers(tmp_path, main, more=more, **environ))
    assert said in str(caught.value)


def test_without_a_file_variables_alone_will_do_where_that_is_allowed(tmp_path: Path) -> None:
    environ = {"BOARD_DEVICE": "one", "BOARD_BROKER_URL": "mqtt://b"}
    absent = tmp_path / "board.toml"
    found = read_layers(Settings, absent, environ, PREFIX, optional=True)
    assert read_settings(Settings, found).device == "one"
    for refused, optional in ((environ, False), ({}, True)):
        with pytest.raises(ConfigurationError, match=r"board.toml: cannot be read"):
            read_layers(Settings, absent, refused, PREFIX, optional=optional)


def test_a_file_that_is_no_configuration_is_not_read_to_its_end(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is it a configuration"):
        layers(tmp_path, "#" * (1 << 21))


def test_known_keys_have_variables_of_their_own_and_defaults() -> None:
    keys = known_keys(Settings)
    assert len({variable_of(key, PREFIX) for key in keys}) == len(keys) == 9
    assert default_of(Settings, "training.threads") == 1
    assert default_of(Settings, "broker.retry_s") == 2.0
    assert default_of(Settings, "device") is None
