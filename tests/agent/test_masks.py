"""An agent and the fleet's mask: fetched, kept, trained under, refused by name where it is not what it should be."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.masks import MaskShelf
from edge_agent.momentum import unpack_memory
from edge_agent.runtimes.engine import Vector
from protocol.errors import Rejection
from protocol.layout import layout_of
from protocol.messages import BlobRef, OptimizerSpec, SharedMask, Task
from protocol.transport import MemoryBroker
from sparse.codecs import Shared, decode_report, decode_update, encode_mask
from sparse.masks import Mask, mask_digest, masked
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_agent import Fleet
from tests.tiny import TOTAL, write_bundle, write_shard

MODEL = (np.arange(1, TOTAL + 1) / 10).astype(np.float32)
# Of the six weights two, and both biases.
MASK = np.array([1, 0, 0, 1, 0, 0, 1, 1], np.bool_)
OTHER = np.array([0, 1, 0, 1, 0, 0, 1, 1], np.bool_)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    bundle = write_bundle(tmp_path / "bundle")
    write_shard(tmp_path / "shard.npz")
    broker = MemoryBroker()
    made = Fleet(tmp_path, broker, FakeCoordinator(broker, bundle), None, None)  # type: ignore[arg-type]
    made.start(tmp_path)
    yield made
    made.store.close()


def task_of(
    fleet: Fleet,
    number: int,
    mask: Mask = MASK,
    base: Mask | None = None,
    report: int = 0,
    *,
    codec: str = "mask/float32",
) -> Task:
    task = fleet.coordinator.task(number, MODEL[mask], codec=codec)
    blob = fleet.coordinator.add(encode_mask(mask, base))
    said = SharedMask(mask_digest(mask), blob, None if base is None else mask_digest(base), report)
    return replace(task, mask=said)


def done(fleet: Fleet, task: Task) -> bytes:
    """The payload that comes of a task."""
    before = len(fleet.coordinator.payloads)
    fleet.coordinator.say(task)
    fleet.until(lambda: len(fleet.coordinator.payloads) > before and not fleet.store.outbox())
    return fleet.coordinator.payloads[-1]


def refused(fleet: Fleet, task: Task) -> tuple[str, str]:
    """Why a task is not done."""
    before = len(fleet.coordinator.reports)
    fleet.coordinator.say(task)
    fleet.until(lambda: len(fleet.coordinator.reports) > before)
    report = fleet.coordinator.reports[-1]
    assert report.state == "refused"
    return report.reason, report.detail


def test_an_agent_trains_what_the_mask_keeps_and_reports_the_rest(fleet: Fleet) -> None:
    payload = done(fleet, task_of(fleet, 1, report=2))
    layout, shared = layout_of(fleet.coordinator.bundle.manifest, "full").digest, Shared(MASK, 2)
    delta, _ = decode_update(payload, TOTAL, 0, layout, shared=shared)
    assert (delta != 0).tolist() == MASK.tolist()
    gradient = decode_report(payload, layout, shared)
    assert not gradient[MASK].any()
    assert np.count_nonzero(gradient) == 2


def test_a_mask_that_keeps_everything_gives_the_update_of_no_mask(fleet: Fleet) -> None:
    layout = layout_of(fleet.coordinator.bundle.manifest, "full").digest
    ones = np.ones(TOTAL, np.bool_)
    plain = done(fleet, fleet.coordinator.task(1, MODEL))
    under = done(fleet, replace(task_of(fleet, 2, ones), seed=1))
    delta = decode_update(under, TOTAL, 0, layout, shared=Shared(ones))[0]
    assert delta.tobytes() == decode_update(plain, TOTAL, 0, layout)[0].tobytes()


def test_a_mask_is_fetched_once_and_then_only_its_differences(fleet: Fleet) -> None:
    first, again, next_ = task_of(fleet, 1), task_of(fleet, 2), task_of(fleet, 3, OTHER, MASK)
    assert first.mask is not None
    assert next_.mask is not None
    done(fleet, first)
    del fleet.coordinator.blobs[first.mask.blob.digest]
    done(fleet, again)
    fleet.restart()
    done(fleet, next_)
    assert [path.name for path in (fleet.folder / "state" / "masks").iterdir()] == [mask_digest(OTHER).hex()]


def test_a_difference_to_a_mask_that_is_not_here_is_refused_as_such_and_the_whole_mask_taken(fleet: Fleet) -> None:
    reason, detail = refused(fleet, task_of(fleet, 1, OTHER, MASK))
    assert reason == "mask-base"
    assert mask_digest(MASK).hex()[:12] in detail
    done(fleet, task_of(fleet, 1, OTHER))


def test_a_mask_of_another_digest_is_refused(fleet: Fleet) -> None:
    task = task_of(fleet, 1)
    assert task.mask is not None
    reason, detail = refused(fleet, replace(task, mask=replace(task.mask, digest=mask_digest(OTHER))))
    assert reason == "mask"
    assert f"{mask_digest(MASK).hex()[:12]} where {mask_digest(OTHER).hex()[:12]} is due" in detail


@pytest.mark.parametrize("length", [TOTAL - 1, TOTAL - 7])
def test_a_mask_of_another_length_is_refused(fleet: Fleet, length: int) -> None:
    wrong = np.ones(length, np.bool_)
    task = replace(fleet.coordinator.task(1, MODEL), codec="mask/float32")
    blob = fleet.coordinator.add(encode_mask(wrong))
    reason, detail = refused(fleet, replace(task, mask=SharedMask(mask_digest(wrong), blob)))
    assert reason == "mask"
    assert f"{length} places where a mask of {TOTAL} is due" in detail


def test_a_mask_that_is_too_large_is_refused_unseen(fleet: Fleet) -> None:
    task = task_of(fleet, 1)
    assert task.mask is not None
    huge = replace(task.mask, blob=BlobRef(bytes(32), 1 << 20))
    reason, detail = refused(fleet, replace(task, mask=huge))
    assert reason == "mask"
    assert "1048576 bytes where a mask of 8 has at most 10" in detail


def test_bytes_that_are_no_mask_are_refused(fleet: Fleet) -> None:
    task = task_of(fleet, 1)
    assert task.mask is not None
    blob = fleet.coordinator.add(b"\x07" + bytes(8))
    reason, _ = refused(fleet, replace(task, mask=replace(task.mask, blob=blob)))
    assert reason == "mask"


def test_a_model_of_more_or_fewer_values_than_the_mask_keeps_is_refused(fleet: Fleet) -> None:
    task = task_of(fleet, 1)
    for values in (MODEL, MODEL[:3]):
        wrong = fleet.coordinator.add(values.tobytes())
        reason, detail = refused(fleet, replace(task, model=wrong))
        assert reason == "model"
        assert f"{4 * len(values)} bytes where 4 values of the manifest are 16" in detail


def test_a_codec_on_a_mask_is_refused_where_the_task_has_none(fleet: Fleet) -> None:
    reason, detail = refused(fleet, fleet.coordinator.task(1, MODEL, codec="mask/float32"))
    assert reason == "task"
    assert "mask/float32 needs a mask" in detail


def test_another_codec_sends_nothing_off_the_mask_either(fleet: Fleet) -> None:
    layout = layout_of(fleet.coordinator.bundle.manifest, "full").digest
    payload = done(fleet, task_of(fleet, 1, codec="topk:0.25/float32"))
    delta = decode_update(payload, TOTAL, 0, layout, shared=Shared(MASK))[0]
    assert np.count_nonzero(delta) == 2
    assert not delta[~MASK].any()


def test_a_shelf_holds_one_mask_and_tells_one_that_rotted(tmp_path: Path) -> None:
    shelf = MaskShelf(tmp_path)
    said = SharedMask(mask_digest(MASK), BlobRef(bytes(32), len(encode_mask(MASK))))
    assert shelf.missing(said, TOTAL) == said.blob
    assert shelf.take(said, TOTAL, encode_mask(MASK)) is None
    assert shelf.missing(said, TOTAL) is None
    kept = shelf.read(said.digest, TOTAL)
    assert kept is not None
    assert masked(MODEL, kept).tobytes() == masked(MODEL, MASK).tobytes()
    assert shelf.read(said.digest, TOTAL + 8) is None
    next_ = SharedMask(mask_digest(OTHER), said.blob, said.digest)
    assert shelf.take(next_, TOTAL, encode_mask(OTHER, MASK)) is None
    assert shelf.read(said.digest, TOTAL) is None
    (tmp_path / mask_digest(OTHER).hex()).write_bytes(b"\0")
    assert shelf.read(next_.digest, TOTAL) is None
    assert isinstance(shelf.take(next_, TOTAL, encode_mask(OTHER, MASK)), Rejection)


@pytest.mark.parametrize("optimizer", [OptimizerSpec(momentum=0.9, keep_momentum=True), OptimizerSpec("qg", 0.9)])
def test_momentum_goes_on_where_both_masks_keep_and_nowhere_else(fleet: Fleet, optimizer: OptimizerSpec) -> None:
    layout = layout_of(fleet.coordinator.bundle.manifest, "full")

    def remembered(number: int, mask: Mask, moved: float) -> Vector:
        task = replace(task_of(fleet, number, mask), optimizer=optimizer)
        model = fleet.coordinator.add((MODEL[mask] * np.float32(moved)).astype("<f4").tobytes())
        done(fleet, replace(task, model=model))
        kept = fleet.store.momentum(layout.digest)
        found = None if kept is None else unpack_memory(kept)
        assert found is not None
        assert found.mask is not None
        assert (found.mask == mask).all()
        return found.vector

    remembered(1, MASK, 1.0)
    # Quasi-global momentum is what the fleet did; velocity, what this device did under the mask of its last round.
    second = remembered(2, MASK, 0.5)
    assert ((second != 0) == MASK).all()
    third = remembered(3, OTHER, 0.25)
    assert not third[~OTHER].any()
    if optimizer.name == "qg":
        assert ((third != 0) == (MASK & OTHER)).all()
