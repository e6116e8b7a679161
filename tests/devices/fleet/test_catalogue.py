"""Boards of the catalogue, and a user's own: every figure has a source, and impossible ones are refused."""

from pathlib import Path

import pytest

from devices.fleet.catalogue import catalogue, load_board
from devices.fleet.reference import STEP_WORK
from protocol.errors import ConfigurationError
from protocol.profile import Profile, format_profile
from tests.devices.fleet.test_fleet_file import _BOARD


def test_the_catalogue_has_the_boards_and_each_says_where_its_figures_are_from() -> None:
    boards = {board.name: board for board in catalogue()}
    assert boards.keys() == {
        "beaglebone-ai-64",
        "intel-n100",
        "jetson-orin-nano",
        "phone-snapdragon-855",
        "raspberry-pi-3b-plus",
        "raspberry-pi-4",
        "raspberry-pi-5",
        "raspberry-pi-zero-2-w",
        "stm32mp257",
        "x86-gateway",
    }
    figures = {"cpu", "cores", "step_ms", "memory_mib", "disk_mib", "disk_write_mib_s", "power", "link"}
    for board in boards.values():
        assert figures <= board.sources.keys()
        assert all("https://" in text or text.startswith(("ours", "derived", "LTE")) for text in board.sources.values())
    assert boards["raspberry-pi-5"].step_ms < boards["raspberry-pi-4"].step_ms < boards["raspberry-pi-3b-plus"].step_ms


def _board(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text)
    return "mine.toml"


def test_a_board_of_ones_own_may_say_its_step_as_measured(tmp_path: Path) -> None:
    board = load_board(_board(tmp_path, _BOARD), tmp_path)
    assert (board.step_ms, board.sources["step_ms"], board.link.link.up_kbit_s) == (30.0, "measured on it", 12_000.0)


def test_a_calibration_made_on_the_board_predicts_its_step(tmp_path: Path) -> None:
    prices = dict.fromkeys(STEP_WORK, 0.0) | {"multiply_add": 1e-9}
    profile = Profile(
        1, "kitchen", "2026-11-23", "aarch64", "Cortex-A53", 4, 1024, "onnxruntime 1.23.2", 1, 70.0, 3000.0, prices, 0.1
    )
    (tmp_path / "kitchen.json").write_text(format_profile(profile))
    text = _BOARD.replace("step_ms = 30.0", 'calibration = "kitchen.json"').replace('step_ms = "measured on it"\n', "")
    board = load_board(_board(tmp_path, text), tmp_path)
    assert board.step_ms == pytest.approx(STEP_WORK["multiply_add"] * 1e-6, rel=1e-3)
    assert board.sources["step_ms"] == "predicted from edge-agent calibrate on kitchen, 2026-11-23"
    fewer = {unit: price for unit, price in prices.items() if unit != "sgd"}
    (tmp_path / "kitchen.json").write_text(format_profile(Profile(*_values(profile, fewer))))
    with pytest.raises(ConfigurationError, match="no price of sgd; calibrate again"):
        load_board("mine.toml", tmp_path)


def _values(profile: Profile, prices: dict[str, float]) -> tuple:  # type: ignore[type-arg]
    p = profile
    head = (p.format, p.name, p.date, p.machine, p.cpu, p.cores, p.memory_mib, p.runtime, p.threads)
    return (*head, p.idle_mib, p.node_bytes, prices, p.error)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('power = "a meter"\n', "", r"sources\.power\.idle_w: missing; say in \[sources\]"),
        ('power = "a meter"', 'power = " "', r"sources\.power\.idle_w: missing"),
        ('step_ms = "measured on it"\n', "", r"sources\.step_ms: missing"),
        ('cpu = "its', 'gpu = "its', r"sources\.cpu: missing"),
        ("step_ms = 30.0\n", "step_ms = 30.0\nbenchmark_ms = 100.0\n", r"step_ms: say exactly one of"),
        ("step_ms = 30.0\n", "", r"step_ms: say exactly one of"),
        ("step_ms = 30.0", "step_ms = -1.0", r"step_ms: -1 is outside .*milliseconds"),
        ("step_ms = 30.0", "benchmark_ms = 0.0", r"benchmark_ms: 0 is outside .*SqueezeNet"),
        ("step_ms = 30.0", "step_ms = nan", r"step_ms: nan is outside"),
        ("cores = 4", "cores = 0", r"cores: 0 is outside 1\.\.1024"),
        ("busy_w = 2.0", "busy_w = 0.5", r"power\.busy_w: 0\.5 is outside 1\.\.10000"),
        ("memory_mib = 1024", "memory_mib = 1024.5", r"memory_mib: expected int"),
        ('architecture = "arm64"', 'architecture = "arm"', r"architecture: 'arm' is not one of 'amd64', 'arm64'"),
        (
            'link = "devices/links.py"\n',
            'link = "x"\nrange_m = "guess"\n',
            r"sources\.range_m: there is no such figure",
        ),
        ('title = "A board of mine"\n', "", r"title: missing"),
        ("[power]", "[power", r"not valid TOML"),
    ],
)
def test_a_board_with_an_impossible_value_or_a_figure_without_source_is_refused(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    assert old in _BOARD
    name = _board(tmp_path, _BOARD.replace(old, new, 1))
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_board(name, tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))
