"""Disks of devices: what is refused before one is made, and that a large one costs this machine little."""

import os
import shutil
from pathlib import Path

import pytest

from devices.engines import disks
from devices.engines.engine import EngineError

FLEET = f"disks-{os.getpid()}"


def test_a_disk_that_is_too_small_for_a_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="give it 8 MiB or more"):
        disks.make_disk(FLEET, "a", tmp_path, 4, (0, 0))


def test_a_disk_that_could_not_grow_here_is_refused_with_the_room_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(EngineError, match="needs 256 MiB to grow, and 100 MiB are free"):
        disks.make_disk(FLEET, "a", tmp_path, 30_518, (0, 0))
    assert list(tmp_path.parent.glob("*.ext4")) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_large_disk_holds_what_was_there_and_takes_little_of_this_machine(tmp_path: Path) -> None:
    point = tmp_path / "state"
    point.mkdir()
    (point / "kept").write_text("before")
    disks.make_disk(FLEET, "a", point, 61_035, (7, 8))
    disk = disks.disk_of(FLEET, "a")
    assert disk is not None
    try:
        assert disk.size_mib == 61_035
        assert [path.name for path in point.iterdir()] == ["kept"]
        assert (point.stat().st_uid, point.stat().st_gid) == (7, 8)
        assert disk.image.stat().st_blocks * 512 < 32 << 20
        assert FLEET in disks.fleets_with_disks()
        assert disks.disks(FLEET) == (disk,)
    finally:
        disks.remove_disk(disk)
    assert (point / "kept").read_text() == "before"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_disk_is_found_whatever_its_folder_is_called_and_after_its_file_was_deleted(tmp_path: Path) -> None:
    point = tmp_path / "Jürgens \\ Gerät" / "state"
    point.mkdir(parents=True)
    disks.make_disk(FLEET, "b", point, 8, (0, 0))
    disk = disks.disk_of(FLEET, "b")
    assert disk is not None
    try:
        assert disk.point == point
        disk.image.unlink()
        assert disks.disk_of(FLEET, "b") == disk
    finally:
        disks.remove_disk(disk)
    assert disks.disk_of(FLEET, "b") is None
