"""A fleet's file is checked whole, and what is wrong in it is said with its key, value, limit and remedy."""

from pathlib import Path

import pytest

from devices.fleet.fleet_file import load_fleet
from protocol.errors import ConfigurationError

_EXAMPLES = Path(__file__).parents[3] / "examples"
_TOP = 'name = "fleet"\ndata = "digits"\nrounds = 2\n'
_DEVICES = '[[devices]]\nboard = "raspberry-pi-4"\nname = "pi"\ncount = 2\n'
_BOARD = """
name = "mine"
title = "A board of mine"
architecture = "arm64"
cpu = "4 x Cortex-A53 at 1.2 GHz"
cores = 4
step_ms = 30.0
memory_mib = 1024
disk_mib = 4096
disk_write_mib_s = 10.0
link = "lte"

[power]
idle_w = 1.0
busy_w = 2.0

[sources]
cpu = "its data sheet"
cores = "its data sheet"
step_ms = "measured on it"
memory_mib = "its data sheet"
disk_mib = "its data sheet"
disk_write_mib_s = "dd"
power = "a meter"
link = "devices/links.py"
"""


def _written(folder: Path, text: str) -> Path:
    path = folder / "fleet.toml"
    path.write_text(text)
    return path


def test_the_mixed_example_is_eight_devices_of_four_kinds_one_of_them_emulated_with_faults_of_every_kind() -> None:
    plan = load_fleet(_EXAMPLES / "mixed-fleet.toml")
    assert (len(plan.devices), len({device.board.name for device in plan.devices}), plan.rounds) == (8, 4, 5)
    assert [device.name for device in plan.devices if not device.native] == ["zero-arm64"]
    kinds = {fault.do for fault in plan.faults}
    assert kinds == {"kill", "cut", "power-cut", "throttle", "clock-jump", "disk-full"}


def test_the_scale_example_is_twenty_boards_and_two_hundred_light_agents() -> None:
    plan = load_fleet(_EXAMPLES / "scale-fleet.toml")
    assert sum(device.light for device in plan.devices) == 200
    assert sum(not device.light for device in plan.devices) == 20


def test_a_group_numbers_its_devices_and_what_it_says_is_different_from_its_board(tmp_path: Path) -> None:
    text = _TOP + _DEVICES + 'memory_mib = 300\nlink = "lte"\navailability = { duty = 0.5, period_s = 60.0 }\n'
    plan = load_fleet(_written(tmp_path, text))
    assert [device.name for device in plan.devices] == ["pi-1", "pi-2"]
    board = plan.devices[0].board
    assert (board.memory_mib, board.link.link.latency_ms, board.availability.duty) == (300, 35.0, 0.5)
    assert board.sources["memory_mib"] == board.sources["link"] == "the fleet's file"
    assert board.sources["power"].startswith("https://")


def test_boards_links_tokens_and_data_are_looked_for_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(_BOARD.replace('link = "lte"', 'link = "my-link.toml"'))
    (tmp_path / "my-link.toml").write_text("[link]\nlatency_ms = 7.0\n")
    text = """
name = "fleet"
data = "shards/{device}.npz"
rounds = 2

[[devices]]
board = "mine.toml"

[coordinator]
enrolment = "server:8884"
broker = "mqtts://server:8883"
tokens = "tokens.txt"
"""
    plan = load_fleet(_written(tmp_path, text))
    assert plan.devices[0].name == "mine"
    assert plan.devices[0].board.link.link.latency_ms == 7.0
    assert plan.coordinator is not None
    assert plan.coordinator.tokens == tmp_path / "tokens.txt"
    assert plan.data == str(tmp_path / "shards/{device}.npz")


def test_a_fault_befalls_all_that_its_pattern_matches(tmp_path: Path) -> None:
    text = _TOP + _DEVICES + '[[faults]]\nat_s = 5\ndevice = "pi-*"\ndo = "cut"\nfor_s = 3\n'
    assert load_fleet(_written(tmp_path, text)).faults[0].devices == ("pi-1", "pi-2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (_TOP, r"devices: missing"),
        (_TOP + _DEVICES.replace("count", "cuont"), r"devices\[0\]\.cuont: unknown key; .*did you mean count"),
        (_TOP + _DEVICES.replace("2", "0"), r"devices\[0\]\.count: 0 is outside 1\.\.2000"),
        (
            _TOP + _DEVICES.replace("pi-4", "pi-6"),
            r"devices\[0\]: board: 'raspberry-pi-6' is unknown; .*fleet-emulate b",
        ),
        (_TOP + _DEVICES.replace("raspberry-pi-4", "no.toml"), r"devices\[0\]: board: .*no\.toml: cannot be read"),
        (_TOP + _DEVICES.replace('"pi"', '"Pi 4"'), r"devices\[0\]\.device: 'Pi 4-1' must be 2 to 63 characters"),
        (_TOP + _DEVICES + _DEVICES, r"devices: 'pi-1' is there twice"),
        (
            _TOP + _DEVICES.replace('"pi"\ncount = 2', '"coordinator"'),
            "'coordinator' is what the emulation calls its own",
        ),
        (_TOP + _DEVICES.replace('"pi"', '"reference-step"'), "'reference-step-1' is what the emulation calls"),
        (
            _TOP + _DEVICES + "memory_mib = 8\n",
            r"devices\[0\]\.memory_mib: 8 is outside 32\.\..*an agent .* needs some 100",
        ),
        (_TOP + _DEVICES + "step_ms = inf\n", r"devices\[0\]\.step_ms: inf is outside"),
        (_TOP + _DEVICES + 'link = "lte-6"\n', r"devices\[0\]: profile: .*lte-6: cannot be read"),
        (_TOP + _DEVICES + "light = true\nnative = false\n", r"devices\[0\]\.native: false for a light device"),
        (_TOP + _DEVICES + "cores = 0.0\n", r"devices\[0\]\.cores: 0 is outside 0\.01\.\.64"),
        (_TOP + _DEVICES + "availability = { duty = 1.5 }\n", r"availability\.duty: 1\.5 is outside 0\.\.1"),
        (_TOP + _DEVICES + "availability = { duty = 0.5 }\n", r"availability\.period_s: 0 .* say how long"),
        (_TOP + _DEVICES + "availability = { trace = [0.5, 2] }\n", r"availability\.trace\[1\]: 2 is outside 0\.\.1"),
        (_TOP + _DEVICES + "availability = { mains = [[0, 5]] }\n", r"availability\.mains: there is no battery"),
        (_TOP + _DEVICES + "availability = { mains = [[0, 5, 9]] }\n", r"availability\.mains\[0\]: .* is no span"),
        (_TOP + _DEVICES + "mtbf_s = 0.001\n", r"devices\[0\]\.mtbf_s: 0\.001 is below 5 s"),
        (_TOP.replace("digits", "digit") + _DEVICES, r"data: 'digit' is unknown; known: digits"),
        (_TOP.replace("digits", "{device}.npz") + _DEVICES, r"data: .* is a pattern .* join a coordinator"),
        (_TOP.replace("rounds = 2", "rounds = 0") + _DEVICES, r"rounds: 0 is outside 1\.\.10000"),
        (_TOP.replace('"fleet"', '"My fleet"') + _DEVICES, r"name: 'My fleet' must be"),
        ('engine = "lxc"\n' + _TOP + _DEVICES, r"engine: 'lxc' is unknown; use auto, podman, docker, processes"),
        ('clock = "slow"\n' + _TOP + _DEVICES, r"clock: 'slow' is no number"),
        ("clock = -1\n" + _TOP + _DEVICES, r"clock: -1 is outside"),
        (
            _TOP + _DEVICES + '[[faults]]\nat_s = 1\ndevice = "p4"\ndo = "kill"\n',
            r"faults\[0\]\.device: 'p4' is no device",
        ),
        (
            _TOP + _DEVICES + '[[faults]]\nat_s = 1\ndevice = "*"\ndo = "burn"\n',
            r"faults\[0\]\.do: 'burn' is not one of",
        ),
        (_TOP + _DEVICES + '[[faults]]\nat_s = 1\ndevice = "*"\ndo = "cut"\n', r"faults\[0\]\.for_s: 0 is outside"),
        (
            _TOP + _DEVICES + '[[faults]]\nat_s = 1\ndevice = "*"\ndo = "kill"\nfor_s = 3\n',
            r"faults\[0\]\.for_s: 'kill' has none; its keys: at_s, device",
        ),
        (
            _TOP + _DEVICES + '[[faults]]\nat_s = 1\ndevice = "*"\ndo = "throttle"\nfor_s = 3\n',
            r"faults\[0\]\.factor: 1 must be above 0 and below 1",
        ),
        (
            _TOP + _DEVICES + '[[faults]]\nat_s = 1\ndevice = "*"\ndo = "clock-jump"\n',
            r"faults\[0\]\.by_s: 0 is no jump",
        ),
        (
            _TOP + _DEVICES + 'light = true\n[[faults]]\nat_s = 1\ndevice = "*"\ndo = "disk-full"\nfor_s = 3\n',
            r"faults\[0\]\.do: 'disk-full' cannot befall pi-1, a plain process: it has no disk",
        ),
        (
            'engine = "processes"\n'
            + _TOP
            + _DEVICES
            + '[[faults]]\nat_s = 1\ndevice = "*"\ndo = "clock-jump"\nby_s = 9\n',
            r"faults\[0\]\.do: 'clock-jump' cannot befall pi-1, a plain process: its clock",
        ),
        (_TOP + _DEVICES + "[coordinator.trust]\nport = 1\n", r"coordinator\.trust: not to be set here"),
        (_TOP + _DEVICES + "[coordinator.rounds]\ncount = 1\n", r"rounds\.count: not to be set here; set rounds at"),
        (_TOP + _DEVICES + '[coordinator]\nbroker = "mqtts://b"\n', r"coordinator\.enrolment: missing"),
        (_TOP + "devices = 3", r"devices: expected a list"),
        ("name", r"not valid TOML"),
    ],
)
def test_what_is_wrong_is_said_by_its_key_with_a_remedy(tmp_path: Path, text: str, said: str) -> None:
    path = _written(tmp_path, text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        load_fleet(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.toml: cannot be read .*examples/mixed-fleet\.toml"):
        load_fleet(Path("nowhere.toml"))
