"""The model as differences, on the device: fetched where its own model is their base, checked, or done without."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_agent.runtimes.engine import Vector
from edge_agent.settings import TrainingSettings
from protocol.disk import LOCAL, folder_bytes
from protocol.layout import layout_of
from protocol.messages import MAX_DIFFERENCES, BlobRef, Difference, Need, Task
from protocol.transport import MemoryBroker
from sparse.codecs import apply_difference, encode_difference, parse_codec
from tests.agent.fake_coordinator import FakeCoordinator
from tests.agent.test_agent import Fleet
from tests.tiny import CLASSES, write_bundle, write_shard

FEATURES = 400
TOTAL = (FEATURES + 1) * CLASSES
CODEC = parse_codec("topk:0.1/int8")


class Server:
    """Versions of a public model, as a coordinator would publish them, and the tasks that name them."""

    def __init__(self, folder: Path) -> None:
        bundle = write_bundle(folder / "bundle", features=FEATURES)
        write_shard(folder / "shard.npz", features=FEATURES)
        broker = MemoryBroker()
        self.coordinator = FakeCoordinator(broker, bundle)
        self.fleet = Fleet(folder, broker, self.coordinator, None, None, training=TrainingSettings())  # type: ignore[arg-type]
        self.fleet.start(folder)
        self.layout = layout_of(bundle.manifest, "full")
        self.models: list[Vector] = [np.zeros(TOTAL, np.float32)]
        self.steps: list[Difference] = []
        for seed in range(4):
            self.publish(seed)

    def publish(self, seed: int) -> None:
        held = self.models[-1]
        target = held + np.random.default_rng(seed).normal(0, 0.1, TOTAL).astype(np.float32)
        payload = encode_difference(held, target, TOTAL, 0, CODEC, self.layout.digest, self.layout.shapes)
        self.models.append(apply_difference(held, payload, TOTAL, 0, self.layout.digest, self.layout.shapes))
        self.steps.append(Difference(digest_of(held), self.coordinator.add(payload)))

    def task(self, version: int, steps: int = 8) -> Task:
        """Of the round that trains this version, with so many of the steps that lead to it."""
        task = self.coordinator.task(version + 1, self.models[version])
        return replace(task, differences=tuple(self.steps[max(0, version - steps) : version]))

    def do(self, task: Task) -> set[bytes]:
        """What the device asked for until its update was accepted."""
        done, asked = len(self.coordinator.payloads), len(self.coordinator.heard)
        self.coordinator.say(task)
        self.fleet.until(lambda: len(self.coordinator.payloads) > done and not self.fleet.store.outbox())
        return {body.digest for body in self.coordinator.heard[asked:] if isinstance(body, Need)}

    def alone(self, folder: Path, task: Task) -> bytes:
        """The payload of a device that fetched the whole model."""
        folder.mkdir()
        other = Server(folder)
        other.coordinator.blobs[task.model.digest] = self.coordinator.blobs[task.model.digest]
        other.do(replace(task, differences=()))
        other.fleet.store.close()
        return other.coordinator.payloads[-1]


def digest_of(model: Vector) -> bytes:
    return hashlib.sha256(model.astype("<f4").tobytes()).digest()


def whole(task: Task) -> set[bytes]:
    return {task.model.digest}


@pytest.fixture
def server(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Server(tmp_path)
    yield made
    made.fleet.store.close()


def test_a_device_that_has_the_model_before_fetches_the_difference_alone(server: Server, tmp_path: Path) -> None:
    server.do(server.task(0))
    task = server.task(1)
    assert server.do(task) == {server.steps[0].blob.digest}
    assert server.fleet.store.blobs.read(task.model.digest) == server.models[1].tobytes()
    assert not server.fleet.store.blobs.has(server.steps[0].base), "one model is enough on a small disk"
    assert server.coordinator.payloads[-1] == server.alone(tmp_path / "alone", task)


def test_a_device_that_missed_rounds_fetches_what_leads_from_its_model_and_no_more(server: Server) -> None:
    server.do(server.task(1))
    assert server.do(server.task(4)) == {step.blob.digest for step in server.steps[1:4]}
    assert server.fleet.store.blobs.read(digest_of(server.models[4])) == server.models[4].tobytes()


def test_a_newcomer_and_one_too_far_behind_fetch_the_whole_model(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert whole(server.task(1)) <= server.do(server.task(1))
    task = server.task(4, steps=2)
    assert server.do(task) == whole(task)
    assert "none of the models that they begin at is here" in caplog.text


def rotted(server: Server) -> None:
    path = server.fleet.store.blobs.path(digest_of(server.models[0]))
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")


def cut_short(server: Server) -> None:
    path = server.fleet.store.blobs.path(digest_of(server.models[0]))
    path.write_bytes(path.read_bytes()[:100])


def unavailable(server: Server) -> None:
    del server.coordinator.blobs[server.steps[0].blob.digest]


def damaged(server: Server) -> None:
    digest = server.steps[0].blob.digest
    server.coordinator.blobs[digest] = server.coordinator.blobs[digest][:-1] + b"\x99"


def no_room(server: Server) -> None:
    # For bundle, manifest, model and update, and not for two models and what lies between them.
    bundle = folder_bytes(LOCAL, server.fleet.folder / "state" / "bundles")
    server.fleet.store.blobs.limit_bytes = bundle + server.task(0).manifest.size + 2 * 4 * TOTAL + 100


@pytest.mark.parametrize("fault", [rotted, cut_short, unavailable, damaged, no_room])
def test_where_the_difference_does_not_do_the_whole_model_is_fetched_and_the_log_says_so(
    fault: Callable[[Server], None], server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.do(server.task(0))
    fault(server)
    task = server.task(1)
    assert server.do(task) - {server.steps[0].blob.digest} == whole(task)
    assert "the whole model is fetched, not the differences to it" in caplog.text
    assert [report.state for report in server.coordinator.reports] == ["accepted", "accepted"]
    assert server.coordinator.payloads[-1] == server.alone(tmp_path / "alone", task)


def foreign(server: Server) -> bytes:
    base, target = server.models[0], server.models[1]
    return encode_difference(base, target, TOTAL, 0, CODEC, b"another!", server.layout.shapes)


def other_result(server: Server) -> bytes:
    base, target = server.models[0], server.models[2]
    return encode_difference(base, target, TOTAL, 0, CODEC, server.layout.digest, server.layout.shapes)


def infinite(server: Server) -> bytes:
    huge = np.full(TOTAL, 1e38, np.float32)
    return encode_difference(-huge, huge, TOTAL, 0, parse_codec("all/int4"), server.layout.digest)


HOSTILE: dict[str, Callable[[Server], bytes]] = {
    "empty": lambda _: b"",
    "garbage": lambda _: bytes(range(200)),
    "truncated": lambda server: server.coordinator.blobs[server.steps[0].blob.digest][:-3],
    "of another layout": foreign,
    "of another model": other_result,
    "huge values": infinite,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_difference_is_refused_and_nothing_is_lost(
    kind: str, server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.do(replace(server.task(0), codec="topk:0.1/float32"))
    left = server.fleet.store.residual(server.layout.digest, TOTAL)
    assert np.count_nonzero(left)
    bad = Difference(server.steps[0].base, server.coordinator.add(HOSTILE[kind](server)))
    task = replace(server.task(1), differences=(bad,), local_steps=100_000)
    server.coordinator.say(task)
    server.fleet.until(lambda: server.fleet.agent.job.phase == "training")
    assert "the whole model is fetched" in caplog.text
    assert server.fleet.store.blobs.read(task.model.digest) == server.models[1].tobytes()
    assert server.fleet.store.residual(server.layout.digest, TOTAL).tolist() == left.tolist()


def test_differences_that_are_no_smaller_than_the_model_are_not_asked_for(server: Server) -> None:
    server.do(server.task(0))
    task = server.task(1)
    large = Difference(server.steps[0].base, BlobRef(b"x" * 32, task.model.size))
    assert server.do(replace(task, differences=(large,))) == whole(task)


def test_a_task_cannot_name_more_steps_than_the_limit(server: Server) -> None:
    with pytest.raises(ValueError, match=f"{MAX_DIFFERENCES + 1} are over the limit of {MAX_DIFFERENCES}"):
        replace(server.task(1), differences=(server.steps[0],) * (MAX_DIFFERENCES + 1))


def test_a_task_that_names_the_outbox_as_base_takes_nothing_from_it(server: Server) -> None:
    server.do(server.task(0))
    server.coordinator.deaf_to = (type(server.coordinator.heard[-1]),)
    server.coordinator.say(server.task(1))
    server.fleet.until(lambda: bool(server.fleet.store.outbox()))
    (offer,) = server.fleet.store.outbox()
    task = replace(server.task(2), differences=(Difference(offer.blob.digest, offer.blob),))
    server.coordinator.say(task)
    server.fleet.until(lambda: server.fleet.store.blobs.has(task.model.digest))
    assert server.fleet.store.blobs.whole(offer.blob)


def test_a_device_killed_at_any_turn_catches_up_and_sends_one_update(server: Server, tmp_path: Path) -> None:
    server.do(server.task(1))
    task = server.task(4)
    server.coordinator.say(task)
    for _ in range(20):
        server.fleet.turn()
        server.fleet.restart()
        server.coordinator.say(task)
    server.fleet.until(lambda: len(server.coordinator.payloads) > 1 and not server.fleet.store.outbox())
    asked = {body.digest for body in server.coordinator.heard if isinstance(body, Need)}
    assert task.model.digest not in asked
    assert server.coordinator.payloads[-1] == server.alone(tmp_path / "alone", task)


def test_a_variant_that_freezes_a_part_catches_up_like_any_whole_model(server: Server) -> None:
    server.do(replace(server.task(0), variant="bias"))
    assert server.do(replace(server.task(1), variant="bias")) == {server.steps[0].blob.digest}
