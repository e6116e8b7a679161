"""The operator's commands given as root beside a coordinator of another user: what they leave, that user can use."""

import os
from pathlib import Path

import pytest

from coordinator import key_commands
from coordinator.authority import locked
from coordinator.cli import main
from coordinator.fleet_keys import FleetKeys, load_keys, new_online
from coordinator.settings import Settings
from protocol.ownership import as_owner
from tests.trust.test_commands import CONFIG

NOBODY = 65534


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The folder of a coordinator, which belongs to nobody where this is root; its configuration is beside it."""
    folder = tmp_path / "home"
    folder.mkdir()
    (tmp_path / "coordinator.toml").write_text(CONFIG.replace('"trust"', '"home/trust"'))
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
        for above in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
            above.chmod(0o755)
    return folder


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}


def test_what_commands_write_belongs_to_the_coordinators_user(home: Path) -> None:
    owner, config = home.stat().st_uid, str(home.parent / "coordinator.toml")
    for words in (("token",), ("keys", "rotate", "--online"), ("keys", "rotate", "--release"), ("keys",)):
        assert main([*words, "--config", config]) == 0
        assert owners(home) == {owner}, words
    assert main(["devices", "revoke", "pi-1", "--config", config]) == 2
    assert owners(home) == {owner}
    assert len(list((home / "trust/keys").glob("ring-*.cbor"))) == 3


def test_a_link_of_another_user_is_acted_on_as_that_user(home: Path) -> None:
    """It may lead to a folder of root's own."""
    link, owner = home / "trust", home.stat().st_uid
    link.symlink_to("/")
    os.chown(link, owner, owner, follow_symlinks=False)
    with as_owner(link):
        assert os.geteuid() == owner


def test_a_rotation_begins_with_the_keys_that_another_has_just_made(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = key_commands.opened

    def then_rotated_by_another(settings: Settings) -> FleetKeys:
        keys = opened(settings)
        assert keys.release is not None
        with locked(home / "trust"):
            new_online(keys, keys.release, 1_700_000_000)
        return keys

    monkeypatch.setattr(key_commands, "opened", then_rotated_by_another)
    assert main(["keys", "rotate", "--online", "--config", str(home.parent / "coordinator.toml")]) == 0
    assert load_keys(home / "trust/keys", "home").ring.version == 3
