"""The commands of keys and releases, as an operator runs them: with the release key here, and with it elsewhere."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from coordinator.cli import main as fleet_coordinator
from coordinator.fleet_keys import load_keys
from export.cli import main as fleet_export
from protocol.release import RELEASE_FILE, Release, check_release
from tests import tiny

HOME = """
fleet = "home"
state = "state"
bundle = "bundle"
[rounds]
count = 1
devices = 1
deadline_s = 1.0
[training]
batch_size = 8
learning_rate = 0.1
local_steps = 1
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "coordinator.toml"
    path.write_text(HOME)
    return path


def said(capsys: pytest.CaptureFixture[str], *words: object, exit_code: int = 0) -> Any:
    """What fleet-coordinator keys prints as JSON."""
    capsys.readouterr()
    assert fleet_coordinator(["keys", *map(str, words), "--json"]) == exit_code
    return json.loads(capsys.readouterr().out)


def test_there_are_no_keys_before_there_are_devices(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fleet_coordinator(["keys", "--config", str(config)]) == 2
    assert "no keys yet" in capsys.readouterr().err


def test_each_key_rotates_by_itself_and_its_private_half_goes(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = said(capsys, "rotate", "--online", "--config", config)
    second = said(capsys, "rotate", "--release", "--config", config)
    assert (first["ring"], second["ring"]) == (2, 3)
    before, after = ({row["key"]: row["id"] for row in rotated["keys"]} for rotated in (first, second))
    assert before["online"] == after["online"]
    assert before["release"] != after["release"]
    names = {path.name for path in (config.parent / "trust" / "keys").glob("*.key")}
    assert names == {f"{kind}-{own}.key" for kind, own in after.items()}
    listed = said(capsys, "--config", config)["keys"]
    assert listed == second["keys"]


def test_the_release_key_can_be_kept_elsewhere_and_signs_there(
    config: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    private, bundle = tmp_path / "release.key", tiny.write_bundle(tmp_path / "bundle")
    assert fleet_export(["release-key", "--out", str(private)]) == 0
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    rotated = said(capsys, "rotate", "--release", "--public", tmp_path / "release.pub", "--config", config)
    assert {row["key"]: row["private"] for row in rotated["keys"]} == {"release": "elsewhere", "online": "here"}
    assert not list((tmp_path / "trust" / "keys").glob("release-*.key"))
    sign = ("sign", str(bundle.root), "--key", str(private), "--fleet", "home", "--version", "4")
    assert fleet_export([*sign, "--expires", "30d", "--json"]) == 0
    signed = json.loads(capsys.readouterr().out)
    keys = load_keys(tmp_path / "trust" / "keys", "home")
    found = check_release(
        (bundle.root / RELEASE_FILE).read_bytes(), keys.ring.release, "home", bundle.digest, signed["expires_s"] - 1
    )
    assert isinstance(found, Release)
    assert (found.version, found.expires - found.made) == (4, 30 * 86400)
    # Without it no ring follows; with it one does.
    assert fleet_coordinator(["keys", "rotate", "--online", "--config", str(config)]) == 3
    assert "--key: the release key is not in" in capsys.readouterr().err
    assert said(capsys, "rotate", "--online", "--key", private, "--config", config)["ring"] == 3


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("sign", "BUNDLE", "--version", "0"), "--version: 0 is outside"),
        (("sign", "BUNDLE", "--version", "1", "--expires", "soon"), "--expires: 'soon' must be a number of days"),
        (("sign", "BUNDLE", "--version", "1", "--fleet", "No"), "--fleet: 'No' must be"),
        (("sign", "/nowhere", "--version", "1"), "not a bundle"),
        (("release-key", "--out", "KEY"), "is there already"),
    ],
)
def test_what_cannot_be_signed_is_said(
    words: tuple[str, ...], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = tmp_path / "a.key"
    assert fleet_export(["release-key", "--out", str(key)]) == 0
    places = {"BUNDLE": str(tiny.write_bundle(tmp_path / "bundle").root), "KEY": str(key)}
    given = [places.get(word, word) for word in words]
    if given[0] == "sign":
        given += ["--key", str(key), *(() if "--fleet" in given else ("--fleet", "home"))]
    assert fleet_export(given) == 3
    assert complaint in capsys.readouterr().err


def test_a_key_that_others_may_read_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = tmp_path / "a.key"
    assert fleet_export(["release-key", "--out", str(key)]) == 0
    key.chmod(0o644)
    bundle = tiny.write_bundle(tmp_path / "bundle").root
    assert fleet_export(["sign", str(bundle), "--key", str(key), "--fleet", "home", "--version", "1"]) == 3
    assert "mode 0644" in capsys.readouterr().err
    assert not (bundle / RELEASE_FILE).exists()
