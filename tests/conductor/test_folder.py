"""The index of fleets: one of a name at a time, found from elsewhere, and known when its conductor is gone."""

import os
import subprocess
from pathlib import Path

import pytest

from devices.conductor import folder
from devices.conductor.folder import Entry, Noted
from protocol.errors import ConfigurationError, NothingToDoError


@pytest.fixture(autouse=True)
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


def test_a_name_is_one_fleets_at_a_time_and_says_where_that_is() -> None:
    with folder.entered(Entry("mixed", "/here", "processes")):
        assert folder.conducted("mixed")
        with (
            pytest.raises(ConfigurationError, match="'mixed' is running already in /here"),
            folder.entered(Entry("mixed", "/there", "processes")),
        ):
            pass
        with folder.entered(Entry("other", "/there", "podman")):
            assert [entry.fleet for entry in folder.entries()] == ["mixed", "other"]


def test_what_a_dead_conductor_left_keeps_the_name_until_it_is_taken_away() -> None:
    with folder.entered(Entry("mixed", "/here", "podman")):
        pass
    assert not folder.conducted("mixed")
    with (
        pytest.raises(ConfigurationError, match="was left in /here; fleet-emulate down mixed"),
        folder.entered(Entry("mixed", "/there", "podman")),
    ):
        pass
    folder.leave("mixed")
    with folder.entered(Entry("mixed", "/there", "podman")):
        assert folder.find("mixed").folder == "/there"


def test_without_a_name_the_only_fleet_is_meant() -> None:
    with pytest.raises(NothingToDoError, match="no fleet runs here"):
        folder.find(None)
    with folder.entered(Entry("a-fleet", "/a", "podman")):
        assert folder.find(None).fleet == "a-fleet"
        with pytest.raises(NothingToDoError, match="these do: a-fleet"):
            folder.find("b-fleet")
        with (
            folder.entered(Entry("b-fleet", "/b", "podman")),
            pytest.raises(ConfigurationError, match="name one of a-fleet, b-fleet"),
        ):
            folder.find(None)


def test_processes_are_known_by_number_and_start_and_never_mistaken() -> None:
    child = subprocess.Popen(("sleep", "1000"))
    with folder.entered(Entry("mixed", "/here", "processes")) as file:
        noted = Noted(file, Entry("mixed", "/here", "processes"))
        noted.add((child.pid, os.getpid(), child.pid))
        (seen, own) = folder.find("mixed").processes
    assert own == folder.process(os.getpid())
    assert folder.process(child.pid) == seen
    child.kill()
    child.wait()
    assert folder.process(child.pid) is None


def test_an_index_that_cannot_be_written_is_named_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with (
        pytest.raises(ConfigurationError, match=r"index of fleets cannot be written there.*XDG_STATE_HOME"),
        folder.entered(Entry("mixed", "/here", "podman")),
    ):
        pass
