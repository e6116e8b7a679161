"""Every way in which an update can be wrong: its own reason, counted, and nothing kept changes."""

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator.intake import check_payload
from coordinator.reports import Reports
from protocol.envelope import Envelope, encode
from protocol.errors import Rejection
from protocol.layout import layout_of
from protocol.messages import (
    CHUNK_BYTES,
    BlobRef,
    Chunk,
    Hello,
    Need,
    Offer,
    Receipt,
    TaskReport,
)
from protocol.transport import Incoming
from sparse.codecs import CodecSpec, encode_update, max_update_bytes, parse_codec
from tests.coordinator.simulation import BUFFERS, HEAD, TOPICS, FakeAgent, Simulation, named

PARAMETERS = 20
Mangle = Callable[[Offer, bytes], tuple[Offer, bytes]]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Simulation]:
    simulation = Simulation.make(tmp_path, count=1, minimum=2)
    yield simulation
    simulation.store.close()


def payload_of(parameters: object, layout: bytes, codec: CodecSpec = CodecSpec(), n: int = PARAMETERS) -> bytes:  # noqa: B008
    values = np.broadcast_to(np.asarray(parameters, np.float32), (n,))
    return encode_update(values, np.zeros(BUFFERS, np.float32), np.zeros(n, np.float32), codec, layout)[0]


def with_first_value(payload: bytes, value: float) -> bytes:
    """The payload with another first value, its checksum made right again."""
    out = bytearray(payload)
    out[36:40] = struct.pack("<f", value)
    end = 36 + 4 * PARAMETERS
    out[32:36] = struct.pack("<I", zlib.crc32(bytes(out[:32]) + bytes(out[36:end])))
    return bytes(out)


OFFERS: dict[str, tuple[str, Mangle]] = {
    "another run": ("other-run", lambda o, p: (replace(o, run="elsewhere"), p)),
    "a round that never was": ("unknown-round", lambda o, p: (replace(o, round=99), p)),
    "a negative round": ("unknown-round", lambda o, p: (replace(o, round=-1), p)),
    "a variant that is not in the bundle": ("variant", lambda o, p: (replace(o, variant="half"), p)),
    "more than its variant trains": ("too-large", lambda o, p: (replace(o, variant="head"), p)),
    "the payload of another variant": ("size", lambda o, p: named(o, payload_of(0.0, bytes(8), n=HEAD))),
    "another codec than the task's": ("codec", lambda o, p: (replace(o, codec="all/float16"), p)),
    "a size over the codec's": ("too-large", lambda o, p: (replace(o, blob=BlobRef(o.blob.digest, 1 << 32)), p)),
    "another base model": ("base-model", lambda o, p: (replace(o, base=bytes(32)), p)),
    "no examples": ("examples", lambda o, p: (replace(o, examples=0), p)),
    "negative examples": ("examples", lambda o, p: (replace(o, examples=-5), p)),
    "a loss that is not a number": ("figures", lambda o, p: (replace(o, loss=float("nan")), p)),
    "a negative peak of memory": ("figures", lambda o, p: (replace(o, peak_mib=-1.0), p)),
    "a peak that is not a number": ("figures", lambda o, p: (replace(o, peak_mib=float("nan")), p)),
    "a negative time": ("figures", lambda o, p: (replace(o, train_s=-1.0), p)),
    "other bytes than offered": ("digest", lambda o, p: (o, bytes(len(p)))),
    "a truncated payload": ("truncated", lambda o, p: named(o, p[:-5])),
    "an empty payload": ("truncated", lambda o, p: named(o, b"")),
    "bytes left over": ("too-large", lambda o, p: named(o, p + b"x")),
    "no payload of ours": ("magic", lambda o, p: named(o, b"x" * len(p))),
    "an altered payload": ("checksum", lambda o, p: named(o, p[:60] + bytes([p[60] ^ 1]) + p[61:])),
    "another layout": ("layout", lambda o, p: named(o, payload_of(0.0, bytes(8)))),
    "infinity among its values": ("nonfinite", lambda o, p: named(o, with_first_value(p, float("inf")))),
    "NaN among its values": ("nonfinite", lambda o, p: named(o, with_first_value(p, float("nan")))),
}
NOT_OF_THE_TASK = {"other-run", "unknown-round"}


@pytest.mark.parametrize("case", OFFERS)
def test_a_wrong_update_is_rejected_with_its_reason_and_the_round_goes_on(case: str, fleet: Simulation) -> None:
    reason, mangle = OFFERS[case]
    bad = fleet.agents["dev-0"]
    bad.mangle = mangle
    fleet.until(lambda: bool(bad.settled))
    receipt = next(iter(bad.settled.values()))
    assert (receipt.verdict, receipt.reason) == ("rejected", reason), receipt.detail
    assert receipt.detail
    fleet.finish()
    assert fleet.committed[0].devices == 2
    assert [u.device for u in fleet.store.accepted(1)] == ["dev-1", "dev-2"]
    assert [(r.device, r.reason) for r in fleet.rejected] == [("dev-0", reason)]
    number = 0 if reason in NOT_OF_THE_TASK else 1
    rows = fleet.store._sql.execute("SELECT round, device, reason, count FROM rejections").fetchall()
    assert rows == [(number, "dev-0", reason, 1)]
    kept = {u.digest.hex() for u in fleet.store.accepted(1)}
    assert {p.name for p in fleet.store.updates.root.iterdir()} == kept


def test_a_declared_size_over_the_limit_is_never_asked_for(fleet: Simulation) -> None:
    bad = fleet.agents["dev-0"]
    bad.mangle = OFFERS["a size over the codec's"][1]
    fleet.until(lambda: bool(bad.settled))
    assert not [b for b in bad.heard if isinstance(b, Need)]
    assert bad.chunks_sent == 0


def test_the_same_rejection_is_said_again_word_for_word_and_counted_once(fleet: Simulation) -> None:
    bad = fleet.agents["dev-0"]
    kept: list[Offer] = []

    def without_examples(offer: Offer, payload: bytes) -> tuple[Offer, bytes]:
        kept.append(replace(offer, examples=0))
        return kept[0], payload

    bad.mangle = without_examples
    fleet.until(lambda: bool(bad.settled))
    bad.send(kept[0])
    fleet.until(lambda: len([b for b in bad.heard if isinstance(b, Receipt)]) == 2)
    first, second = (b for b in bad.heard if isinstance(b, Receipt))
    assert first == second
    assert len(fleet.rejected) == 1


def settle_one(fleet: Simulation) -> tuple[FakeAgent, Offer]:
    """Lets dev-0 deliver; the round stays open for dev-2, which is silent. Returns the accepted offer."""
    agent, kept = fleet.agents["dev-0"], []

    def keep(offer: Offer, payload: bytes) -> tuple[Offer, bytes]:
        kept.append(offer)
        return offer, payload

    agent.mangle = keep
    fleet.agents["dev-2"].silent = True
    fleet.until(lambda: len(fleet.store.accepted(1)) == 2 and bool(agent.settled))
    return agent, kept[0]


def receipts(agent: FakeAgent) -> list[Receipt]:
    return [b for b in agent.heard if isinstance(b, Receipt)]


def test_a_second_update_for_the_same_round_is_a_duplicate(fleet: Simulation) -> None:
    agent, offer = settle_one(fleet)
    agent.send(replace(offer, update_sequence=77, blob=BlobRef(hashlib.sha256(b"other").digest(), 5)))
    fleet.until(lambda: len(receipts(agent)) == 2)
    assert receipts(agent)[1].reason == "duplicate"
    assert len(fleet.store.accepted(1)) == 2


def test_two_payloads_under_one_name_are_refused(fleet: Simulation) -> None:
    agent, offer = settle_one(fleet)
    agent.send(replace(offer, blob=BlobRef(hashlib.sha256(b"other").digest(), 5)))
    fleet.until(lambda: len(receipts(agent)) == 2)
    assert receipts(agent)[1].reason == "name-reused"
    agent.send(offer)
    fleet.until(lambda: len(receipts(agent)) == 3)
    assert receipts(agent)[2] == receipts(agent)[0]


def test_an_offer_with_an_endless_name_is_no_message_and_its_answer_never_a_fault(fleet: Simulation) -> None:
    agent, offer = settle_one(fleet)
    for _ in range(2):
        agent.send(replace(offer, run="x" * 1990, update_sequence=50))
        fleet.turn()
    assert [r.reason for r in fleet.rejected] == ["malformed"] * 2
    assert receipts(agent)[-1].verdict == "accepted"


def test_a_device_that_never_said_hello_is_refused_and_changes_nothing(fleet: Simulation) -> None:
    _, offer = settle_one(fleet)
    before = [tuple(fleet.store._sql.execute(f"SELECT count(*) FROM {t}").fetchone()) for t in ("updates", "receipts")]
    for body in (offer, Need(bytes(32), (0,)), TaskReport(offer.task, "failed")):
        topic = TOPICS.device("stranger", "up")
        fleet.coordinator.handle(Incoming(topic, encode(Envelope(1, 1, 0, body))), fleet.now)
    assert [r.reason for r in fleet.rejected] == ["unknown-device"] * 3
    after = [tuple(fleet.store._sql.execute(f"SELECT count(*) FROM {t}").fetchone()) for t in ("updates", "receipts")]
    assert before == after
    fleet.coordinator.stop()
    with Reports(fleet.folder / "state") as reports:
        assert reports.status(fleet.settings.rounds).rejected == 3
        assert "stranger" not in [row.device for row in reports.devices()]


def test_a_device_that_was_not_asked_has_no_task(fleet: Simulation) -> None:
    _, offer = settle_one(fleet)
    uninvited = fleet.add("dev-9")
    fleet.until(lambda: bool(uninvited.heard))
    uninvited.send(offer)
    fleet.until(lambda: bool(receipts(uninvited)))
    assert receipts(uninvited)[0].reason == "no-task"


def test_examples_count_up_to_the_limit_of_one_device(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=1)
    fleet.kill()
    fleet.settings = replace(fleet.settings, limits=replace(fleet.settings.limits, examples=100))
    fleet.start()
    fleet.agents["dev-0"].mangle = lambda o, p: (replace(o, examples=10**15), p)
    fleet.finish()
    assert fleet.store.accepted(1)[0].weight == 100
    fleet.store.close()


GARBAGE = {
    "malformed": b"\xff\xff\xff",
    "frame-too-large": bytes(200_000),
    "protocol": encode(Envelope(1, 1, 0, Hello("t", "auto")))[:0] + b"\xa1\x00\x18\x63",
}


@pytest.mark.parametrize("reason", GARBAGE)
def test_garbage_is_counted_by_device_and_the_round_goes_on(reason: str, fleet: Simulation) -> None:
    fleet.until(lambda: bool(fleet.committed) or bool(fleet.agents["dev-0"].heard))
    fleet.coordinator.handle(Incoming(TOPICS.device("dev-0", "up"), GARBAGE[reason]), fleet.now)
    assert [(r.device, r.reason) for r in fleet.rejected] == [("dev-0", reason)]
    fleet.finish()
    assert fleet.committed[0].devices == 3


def test_chunks_nobody_asked_for_and_of_the_wrong_length_are_harmless(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, count=1, parameters=300_000)
    agent = fleet.agents["dev-0"]
    fleet.until(lambda: agent.chunks_sent > 0)
    digest = next(iter(agent.outbox))
    agent.send(Chunk(digest, 0, b"short"), "up/blob")
    agent.send(Chunk(digest, 7_000_000, bytes(CHUNK_BYTES)), "up/blob")
    agent.send(Chunk(bytes(32), 0, bytes(CHUNK_BYTES)), "up/blob")
    fleet.finish()
    assert [r.reason for r in fleet.rejected] == ["chunk", "chunk"]
    assert fleet.committed[0].devices == 3
    fleet.store.close()


def test_messages_on_the_wrong_channel_or_of_the_wrong_side_are_counted(fleet: Simulation) -> None:
    fleet.until(lambda: bool(fleet.agents["dev-0"].heard))
    hello = encode(Envelope(1, 1, 0, Hello("t", "auto")))
    receipt = encode(Envelope(1, 1, 0, Receipt(bytes(32), "t", "accepted")))
    fleet.coordinator.handle(Incoming(TOPICS.device("dev-0", "state"), hello), fleet.now)
    fleet.coordinator.handle(Incoming(TOPICS.device("dev-0", "up/blob"), hello), fleet.now)
    fleet.coordinator.handle(Incoming(TOPICS.device("dev-0", "up"), receipt), fleet.now)
    fleet.coordinator.handle(Incoming(TOPICS.device("dev-0", "down"), hello), fleet.now)
    fleet.coordinator.handle(Incoming("elsewhere", hello), fleet.now)
    assert [r.reason for r in fleet.rejected] == ["misplaced"] * 3


@pytest.mark.parametrize("codec", ["topk:0.5@tensor/sign/rans@tensor", "all/int8", "randk:0.5/float16", "all/drive"])
def test_a_codec_that_needs_the_tensors_is_decoded_with_those_of_the_layout(codec: str, fleet: Simulation) -> None:
    layout, spec = layout_of(fleet.bundle.manifest, "full"), parse_codec(codec)
    delta = np.random.default_rng(0).standard_normal(layout.n_parameters).astype(np.float32)
    rest, none = np.zeros(layout.n_buffers, np.float32), np.zeros(layout.n_parameters, np.float32)
    payload, left = encode_update(delta, rest, none, spec, layout.digest, shapes=layout.shapes, seed=9)
    assert len(payload) <= max_update_bytes(layout.n_parameters, layout.n_buffers, spec, shapes=layout.shapes)
    decoded = check_payload(payload, codec, layout, np.zeros(fleet.bundle.manifest.total, np.float32))
    assert not isinstance(decoded, Rejection)
    assert not left.any() or np.allclose(decoded[0] + left, delta, atol=1e-6)


def test_values_that_are_finite_but_make_the_model_overflow_are_refused(fleet: Simulation) -> None:
    fleet.until(lambda: bool(fleet.coordinator._course.asking._tasks))
    manifest, task = fleet.bundle.manifest, fleet.coordinator._course.asking._tasks["dev-0"]
    layout = layout_of(manifest, "full")
    payload = payload_of(3e38, layout.digest)
    base = np.ones(manifest.total, np.float32)
    assert not isinstance(check_payload(payload, task.codec, layout, base), Rejection)
    refused = check_payload(payload, task.codec, layout, base * np.float32(3e38))
    assert isinstance(refused, Rejection)
    assert refused.reason == "nonfinite"
