"""Blobs on disk, with the power cut at every step."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.blobs import BlobStore
from protocol.disk import LocalDisk, write_durably
from protocol.errors import SparsefleetError
from protocol.messages import CHUNK_BYTES, BlobRef
from protocol.transfer import Receiving

LIMIT = 1 << 30
DATA = os.urandom(3 * CHUNK_BYTES + 100)
REF = BlobRef(hashlib.sha256(DATA).digest(), len(DATA))


def piece(index: int) -> bytes:
    return DATA[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]


class PowerCut(BaseException):
    """Not an Exception, so that nothing under test can catch it."""


class Disk:
    """Counts what touches the disk, ends the process at one such step, and takes what was not yet made durable.

    Stricter than any real disk: what was not fsynced is lost, always. A rename is durable, so that one of a file not
    yet fsynced is the mistake it would be on a real disk now and then.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.steps, self.cut_at = root, 0, -1
        self.durable: dict[Path, bytes] = {}
        fsync, pwrite, truncate, rename, unlink = os.fsync, os.pwrite, os.ftruncate, Path.rename, Path.unlink

        def fsynced(descriptor: int) -> None:
            self.step()
            fsync(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            if path.is_file():
                self.durable[path] = path.read_bytes()

        def written(descriptor: int, data: bytes, at: int) -> int:
            self.step()
            return pwrite(descriptor, data, at)

        def truncated(descriptor: int, size: int) -> None:
            self.step()
            truncate(descriptor, size)

        def renamed(path: Path, target: Path) -> Path:
            self.step()
            assert self.durable.get(path) == path.read_bytes(), f"{path.name} is renamed before it is durable"
            self.durable[target] = self.durable.pop(path)
            return rename(path, target)

        def unlinked(path: Path, missing_ok: bool = False) -> None:
            self.step()
            unlink(path, missing_ok=missing_ok)
            self.durable.pop(path, None)

        monkeypatch.setattr(os, "fsync", fsynced)
        monkeypatch.setattr(os, "pwrite", written)
        monkeypatch.setattr(os, "ftruncate", truncated)
        monkeypatch.setattr(Path, "rename", renamed)
        monkeypatch.setattr(Path, "unlink", unlinked)

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.cut_at:
            raise PowerCut

    def restart(self) -> None:
        """What the next boot finds: the durable bytes of each file, and nothing else."""
        self.cut_at = -1
        for path in self.root.iterdir():
            if path in self.durable:
                path.write_bytes(self.durable[path])
            else:
                path.write_bytes(b"")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    root = tmp_path / "blobs"
    root.mkdir()
    with monkeypatch.context() as patch:
        yield Disk(root, patch)


def receive_all(store: BlobStore) -> int:
    """Receives what is missing of the blob, with a checkpoint after each chunk; returns how many chunks came anew."""
    state, anew = store.resume(REF), 0
    with_part = store.root / f"{REF.digest.hex()}.part"
    for index in range(REF.chunks):
        if state.have >> index & 1:
            kept = with_part.read_bytes()[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            assert kept == piece(index), f"the bitmap promises chunk {index}, which is not there"
        else:
            store.write_chunk(REF, index, piece(index))
            state = Receiving(REF, have=state.have | 1 << index)
            store.checkpoint(state)
            anew += 1
    assert store.finish(REF)
    return anew


def test_after_a_power_cut_at_any_step_nothing_promised_is_missing_and_the_rest_is_fetched(disk: Disk) -> None:
    receive_all(BlobStore(disk.root, LIMIT))
    steps, repeated = disk.steps, []
    assert steps > 20
    for cut_at in range(1, steps + 1):
        BlobStore(disk.root, LIMIT).remove(REF.digest)
        assert not any(disk.root.iterdir())
        disk.steps, disk.cut_at = 0, cut_at
        with pytest.raises(PowerCut):
            receive_all(BlobStore(disk.root, LIMIT))
        disk.restart()
        store = BlobStore(disk.root, LIMIT)
        if not store.has(REF.digest):
            repeated.append(receive_all(store))
        assert store.read(REF.digest) == DATA
    assert repeated == sorted(repeated, reverse=True)
    assert repeated[0] == REF.chunks
    assert repeated[-1] == 0


def test_a_process_that_only_dies_loses_no_more_than_a_power_cut(disk: Disk) -> None:
    disk.cut_at = 12
    with pytest.raises(PowerCut):
        receive_all(BlobStore(disk.root, LIMIT))
    disk.cut_at = -1
    store = BlobStore(disk.root, LIMIT)
    assert receive_all(store) < REF.chunks
    assert store.read(REF.digest) == DATA


def test_a_put_cut_at_any_step_is_all_or_nothing(disk: Disk) -> None:
    for cut_at in (1, 2, 3):
        disk.steps, disk.cut_at = 0, cut_at
        with pytest.raises(PowerCut):
            BlobStore(disk.root, LIMIT).put(DATA)
        disk.restart()
        store = BlobStore(disk.root, LIMIT)
        assert not store.has(REF.digest) or store.read(REF.digest) == DATA
        assert not list(disk.root.glob("*.tmp"))
        store.remove(REF.digest)


def test_a_file_written_durably_has_its_old_or_its_new_content(disk: Disk) -> None:
    path = disk.root / "file"
    write_durably(path, b"old")
    for cut_at in (1, 2, 3):
        disk.steps, disk.cut_at = 0, cut_at
        with pytest.raises(PowerCut):
            write_durably(path, b"new")
        disk.restart()
        assert path.read_bytes() == (b"old" if cut_at < 3 else b"new")


def test_a_blob_with_the_wrong_bytes_starts_afresh(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, LIMIT)
    for index in range(REF.chunks):
        store.write_chunk(REF, index, bytes(len(piece(index))))
    store.checkpoint(Receiving(REF, have=0b1111))
    assert store.resume(REF).complete
    assert not store.finish(REF)
    assert not any(tmp_path.iterdir())
    assert receive_all(store) == REF.chunks


@pytest.mark.parametrize("damage", ["bitmap gone", "bitmap too long", "part gone", "part short"])
def test_a_damaged_partial_blob_starts_afresh(tmp_path: Path, damage: str) -> None:
    store = BlobStore(tmp_path, LIMIT)
    store.write_chunk(REF, 0, piece(0))
    store.checkpoint(Receiving(REF, have=1))
    assert store.resume(REF).have == 1
    part, have = (tmp_path / f"{REF.digest.hex()}.{suffix}" for suffix in ("part", "have"))
    match damage:
        case "bitmap gone":
            have.unlink()
        case "bitmap too long":
            have.write_bytes(b"\x11")
        case "part gone":
            part.unlink()
        case "part short":
            os.truncate(part, 10)
    assert store.resume(REF).have == 0
    receive_all(store)


def test_an_empty_blob_is_stored_and_received(tmp_path: Path) -> None:
    empty = BlobRef(hashlib.sha256(b"").digest(), 0)
    for store in (BlobStore(tmp_path / "put", LIMIT), BlobStore(tmp_path / "received", LIMIT)):
        if store.root.name == "put":
            assert store.put(b"") == empty
        else:
            assert store.resume(empty).complete
            assert store.finish(empty)
        assert store.has(empty.digest)
        assert store.read(empty.digest) == b""
        assert store.read_chunk(empty.digest, 0) is None


def test_chunks_of_a_whole_blob_are_read_and_others_are_not(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, LIMIT)
    assert store.read_chunk(REF.digest, 0) is None
    assert store.put(DATA) == REF
    assert b"".join(store.read_chunk(REF.digest, i) or b"" for i in range(REF.chunks)) == DATA
    for index in (-1, REF.chunks, 1 << 62, 1 << 200):
        assert store.read_chunk(REF.digest, index) is None
    store.remove(REF.digest)
    assert not store.has(REF.digest)


def test_the_limit_counts_what_is_there_and_not_twice(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, len(DATA) + 10)
    assert store.room_for(REF)
    assert not store.room_for(BlobRef(bytes(32), len(DATA) + 11))
    store.write_chunk(REF, 3, piece(3))
    assert store.used_bytes() == len(DATA)
    assert store.room_for(REF)
    assert not store.room_for(BlobRef(bytes(32), 11))
    for index in range(3):
        store.write_chunk(REF, index, piece(index))
    assert store.finish(REF)
    assert store.put(DATA) == REF
    with pytest.raises(SparsefleetError, match=rf"11 more bytes .* limit of {len(DATA) + 10}"):
        store.put(b"x" * 11)
    assert store.put(b"x" * 10).size == 10
    assert store.used_bytes() == store.limit_bytes


def test_a_restart_clears_what_was_half_written(tmp_path: Path) -> None:
    (tmp_path / "abc.tmp").write_bytes(b"half")
    BlobStore(tmp_path, LIMIT)
    assert not any(tmp_path.iterdir())


def test_a_restart_clears_the_bitmap_of_a_transfer_that_a_kill_found_at_its_end(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, LIMIT)
    for name in ("ended.have", "under-way.have", "under-way.part"):
        (tmp_path / name).write_bytes(b"1")
    BlobStore(tmp_path, LIMIT)
    assert {path.name for path in store.root.iterdir()} == {"under-way.have", "under-way.part"}


@pytest.mark.parametrize(
    "data", [b"", DATA[:-1], bytes([DATA[0] ^ 1]) + DATA[1:]], ids=["empty", "cut short", "altered"]
)
def test_a_blob_damaged_behind_our_back_is_never_taken_for_whole(tmp_path: Path, data: bytes) -> None:
    store = BlobStore(tmp_path, LIMIT)
    store.put(DATA)
    assert store.whole(REF)
    assert store.read(REF.digest) == DATA
    store.path(REF.digest).write_bytes(data)
    with pytest.raises(SparsefleetError, match=f"{REF.digest.hex()}: was altered or cut short.*restore the state"):
        store.read(REF.digest)
    assert store.whole(REF) == (len(data) == len(DATA))
    store.path(REF.digest).unlink()
    assert not store.whole(REF)
    with pytest.raises(SparsefleetError, match="is gone; restore the state folder from a backup"):
        store.read(REF.digest)


class Forgetful(LocalDisk):
    """Knows which names of a folder a power cut would leave, and may be killed before it makes them so."""

    def __init__(self) -> None:
        super().__init__()
        self.lasting: set[str] = set()
        self.deadly = False

    def sync(self, *paths: Path) -> None:
        folders = [path for path in paths if path.name == "blobs"]
        if folders and self.deadly:
            raise PowerCut
        super().sync(*paths)
        for folder in folders:
            self.lasting = set(self.names(folder))


@pytest.mark.parametrize("way", ["put", "keep"])
def test_a_name_that_a_killed_process_left_is_made_durable_before_it_is_relied_on(tmp_path: Path, way: str) -> None:
    disk = Forgetful()

    def store_it() -> None:
        store = BlobStore(tmp_path / "blobs", LIMIT, disk)
        if way == "put":
            store.put(DATA)
            return
        if not store.has(REF.digest):
            for index in range(REF.chunks):
                store.write_chunk(REF, index, piece(index))
        assert store.verified(REF) == DATA
        store.keep(REF)

    disk.deadly = True
    with pytest.raises(PowerCut):
        store_it()
    disk.deadly = False
    assert (tmp_path / "blobs" / REF.digest.hex()).exists(), "the system knows the name, and the disk may not"
    store_it()
    assert REF.digest.hex() in disk.lasting
