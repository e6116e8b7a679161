"""A device that trains a part of the model: what it fetches, what moves, what it sends; and which backend's files."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtimes import backends
from edge_agent.runtimes.backends import BackendEntry
from edge_agent.runtimes.engine import Engine
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.settings import TrainingSettings
from protocol.bundle import Bundle, open_bundle
from protocol.errors import BundleError
from protocol.layout import layout_of
from protocol.manifest import MANIFEST_FILE, Backend, FileEntry, format_manifest
from protocol.messages import Need, Offer, OptimizerSpec
from protocol.transport import MemoryBroker
from sparse.codecs import decode_update
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_agent import Fleet, training_of
from tests.tiny import CLASSES, TOTAL, write_bundle, write_shard

ONES = np.ones(TOTAL, np.float32)
WEIGHT = TOTAL - CLASSES
DECAY = OptimizerSpec(momentum=0.9, weight_decay=0.1, proximal=0.1)


def made(folder: Path, bundle: Bundle | None = None, **training: str) -> Fleet:
    bundle = bundle or write_bundle(folder / "bundle")
    write_shard(folder / "shard.npz")
    broker = MemoryBroker()
    coordinator = FakeCoordinator(broker, bundle)
    fleet = Fleet(folder, broker, coordinator, None, None, training=TrainingSettings(**training))  # type: ignore[arg-type]
    fleet.start(folder)
    return fleet


def with_backends(folder: Path, names: Mapping[str, str], role: str = "graph") -> Bundle:
    """The tiny bundle with backends that have a file each."""
    manifest = write_bundle(folder).manifest
    for path in names.values():
        (folder / path).write_bytes(path.encode() * 100)
    entries = [
        FileEntry(path, len(data), hashlib.sha256(data).hexdigest())
        for path in names.values()
        for data in [(folder / path).read_bytes()]
    ]
    full = replace(manifest.variants[0], backends={name: Backend({role: path}, "it") for name, path in names.items()})
    said = format_manifest(replace(manifest, files=(*manifest.files, *entries), variants=(full,)))
    (folder / MANIFEST_FILE).write_bytes(said)
    return open_bundle(folder)


def asked(fleet: Fleet) -> set[str]:
    """The bundle's files that the device asked for."""
    digests = {need.digest.hex() for need in fleet.coordinator.of(Need) if isinstance(need, Need)}
    return {entry.path for entry in fleet.coordinator.bundle.manifest.files if entry.sha256 in digests}


def finish(fleet: Fleet, payloads: int = 1) -> None:
    fleet.until(lambda: len(fleet.coordinator.payloads) == payloads and not fleet.store.outbox())


def test_a_device_of_a_variant_fetches_its_files_and_sends_what_it_trained(tmp_path: Path) -> None:
    fleet = made(tmp_path, variant="bias")
    fleet.coordinator.say(replace(fleet.coordinator.task(1, ONES), optimizer=DECAY))
    finish(fleet)
    assert asked(fleet) == {"numpy/bias/graph.bin"}
    offer = fleet.coordinator.of(Offer)[0]
    assert isinstance(offer, Offer)
    assert offer.variant == "bias"
    layout = layout_of(fleet.coordinator.bundle.manifest, "bias")
    assert (layout.n_parameters, layout.n_buffers) == (CLASSES, 0)
    delta, buffers = decode_update(fleet.coordinator.payloads[0], CLASSES, 0, layout.digest)
    assert np.count_nonzero(delta) == CLASSES
    assert len(buffers) == 0
    fleet.store.close()


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_what_is_frozen_does_not_move_whatever_the_optimiser(tmp_path: Path, name: str) -> None:
    fleet = made(tmp_path, variant="bias")
    wanted = DECAY if name == "sgd" else OptimizerSpec(name="adamw", weight_decay=0.1, proximal=0.1)
    fleet.coordinator.say(replace(fleet.coordinator.task(1, ONES, steps=10_000), optimizer=wanted))
    fleet.until(lambda: (found := training_of(fleet)) is not None and found.done >= 3)
    training = training_of(fleet)
    assert training is not None
    trained = training.result().model
    assert trained[:WEIGHT].tobytes() == ONES[:WEIGHT].tobytes()
    assert (trained[WEIGHT:] != 1).all()
    assert len(training._optimizer.first_moment) == CLASSES
    fleet.store.close()


def test_a_variant_sends_less_than_the_full_model(tmp_path: Path) -> None:
    sizes = []
    for variant in ("full", "bias"):
        fleet = made(tmp_path / variant, variant=variant)
        fleet.coordinator.say(fleet.coordinator.task(1, ONES))
        finish(fleet)
        sizes.append(len(fleet.coordinator.payloads[0]))
        fleet.store.close()
    assert sizes[0] - sizes[1] == 4 * WEIGHT


def test_a_variant_that_the_bundle_does_not_hold_is_refused_before_any_file_is_fetched(tmp_path: Path) -> None:
    fleet = made(tmp_path, variant="half")
    fleet.coordinator.say(fleet.coordinator.task(1, ONES))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    report = fleet.coordinator.reports[0]
    assert (report.state, report.reason) == ("refused", "variant")
    assert "'half' is not in this bundle, which holds full, bias" in report.detail
    assert asked(fleet) == set()
    fleet.store.close()


def test_after_a_change_of_variant_its_own_files_are_fetched_and_no_residual_is_carried_over(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    codec = "topk:0.3/float32/bitmap"
    fleet.coordinator.say(fleet.coordinator.task(1, ONES, codec=codec))
    finish(fleet)
    full = layout_of(fleet.coordinator.bundle.manifest, "full")
    part = layout_of(fleet.coordinator.bundle.manifest, "bias")
    assert np.count_nonzero(fleet.store.residual(full.digest, TOTAL))
    fleet.training = TrainingSettings(variant="bias")
    fleet.restart()
    fleet.coordinator.say(fleet.coordinator.task(2, ONES))
    finish(fleet, 2)
    assert asked(fleet) == {"numpy/graph.bin", "numpy/bias/graph.bin"}
    # Dense, and nothing was carried along: what came is what was learnt, which is the same without any history.
    alone = made(tmp_path / "alone", variant="bias")
    alone.coordinator.say(alone.coordinator.task(2, ONES))
    finish(alone)
    assert fleet.coordinator.payloads[1] == alone.coordinator.payloads[0]
    assert not np.count_nonzero(fleet.store.residual(full.digest, TOTAL))
    assert not np.count_nonzero(fleet.store.residual(part.digest, CLASSES))
    for each in (fleet, alone):
        each.store.close()


def test_a_device_killed_at_any_turn_sends_one_update_of_its_variant(tmp_path: Path) -> None:
    fleet = made(tmp_path, variant="bias")
    task = fleet.coordinator.task(1, ONES, steps=20)
    fleet.coordinator.say(task)
    for _ in range(15):
        fleet.turn()
        fleet.restart()
        fleet.coordinator.say(task)
    finish(fleet)
    assert {offer.variant for offer in fleet.coordinator.of(Offer) if isinstance(offer, Offer)} == {"bias"}
    fleet.store.close()


def test_a_file_that_is_gone_from_this_disk_is_fetched_again_without_a_word(tmp_path: Path) -> None:
    fleet = made(tmp_path)
    fleet.coordinator.say(fleet.coordinator.task(1, ONES))
    finish(fleet)
    next((tmp_path / "state" / "bundles").glob("*/numpy/graph.bin")).unlink()
    fleet.restart()
    fleet.coordinator.say(fleet.coordinator.task(2, ONES))
    finish(fleet, 2)
    assert [r.state for r in fleet.coordinator.reports] == ["accepted", "accepted"]
    fleet.store.close()


def broken(bundle: Bundle, variant: str, threads: int) -> Engine:
    raise BundleError("graph: an operator that this runtime does not know")


def working(bundle: Bundle, variant: str, threads: int) -> Engine:
    return NumpyEngine(bundle, variant)


def test_only_the_files_of_the_backend_that_runs_here_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(backends.BACKENDS, "numpy", BackendEntry(lambda: None, working))
    monkeypatch.setitem(backends.BACKENDS, "other", BackendEntry(lambda: "no such chip", broken))
    fleet = made(tmp_path, with_backends(tmp_path / "bundle", {"other": "other.onnx", "numpy": "numpy.onnx"}))
    fleet.coordinator.say(fleet.coordinator.task(1, ONES))
    finish(fleet)
    assert asked(fleet) == {"numpy.onnx"}
    fleet.store.close()


def test_when_a_backends_graphs_do_not_load_the_next_ones_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(backends.BACKENDS, "numpy", BackendEntry(lambda: None, broken))
    monkeypatch.setitem(backends.BACKENDS, "other", BackendEntry(lambda: None, working))
    caplog.set_level("INFO")
    fleet = made(tmp_path, with_backends(tmp_path / "bundle", {"other": "other.onnx", "numpy": "numpy.onnx"}))
    fleet.coordinator.say(fleet.coordinator.task(1, ONES))
    finish(fleet)
    assert asked(fleet) == {"numpy.onnx", "other.onnx"}
    assert "numpy is not usable (graph: an operator that this runtime does not know)" in caplog.text
    assert [r.state for r in fleet.coordinator.reports] == ["accepted"]
    # And it is remembered: the next task asks for nothing more.
    needs = len(fleet.coordinator.of(Need))
    fleet.coordinator.say(fleet.coordinator.task(2, ONES + 1))
    finish(fleet, 2)
    assert len(fleet.coordinator.of(Need)) == needs + 1
    fleet.store.close()


@pytest.mark.parametrize("wanted", ["auto", "numpy"])
def test_a_task_is_refused_when_no_backend_that_may_be_used_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: str
) -> None:
    monkeypatch.setitem(backends.BACKENDS, "numpy", BackendEntry(lambda: None, broken))
    fleet = made(tmp_path, backend=wanted)
    fleet.coordinator.say(fleet.coordinator.task(1, ONES))
    fleet.until(lambda: bool(fleet.coordinator.reports))
    report = fleet.coordinator.reports[0]
    assert (report.state, report.reason) == ("refused", "trial")
    assert "an operator that this runtime does not know" in report.detail
    assert fleet.agent.job.phase == "idle"
    fleet.store.close()
