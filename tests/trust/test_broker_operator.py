"""Who runs the broker carries what it cannot make: forged, altered, moved and repeated messages are refused, each with
its reason, and change nothing."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.envelope import Envelope, encode
from protocol.errors import Rejection
from protocol.messages import (
    Chunk,
    Offer,
    Receipt,
    Task,
    TaskReport,
    Welcome,
    Withdraw,
)
from protocol.sealed import SEALED_BYTES, sealed
from protocol.signing import load_signer, new_signing_key
from tests.trust.office import Office
from tests.trust.sealed_fleet import TOPICS, SealedFleet

PI = "pi-1"


@pytest.fixture
def fleet(tmp_path: Path, office: Office) -> Iterator[SealedFleet]:
    made = SealedFleet(tmp_path, office, PI, "pi-2", count=1000)
    made.until(lambda: len(made.committed) >= 1)
    yield made
    made.close()


def unsealed(payload: bytes) -> bytes:
    """As somebody without keys would say it."""
    return b"\xa6" + payload[1:-SEALED_BYTES]


def heard_by_device(fleet: SealedFleet, topic: str, payload: bytes) -> list[str]:
    """The reasons for which the device refuses a message that the operator delivers."""
    device = fleet.devices[PI]
    reasons: list[str] = []
    said = device.agent._complain

    def note(of: str, why: Rejection, now: float) -> None:
        reasons.append(why.reason)
        said(of, why, now)

    device.agent._complain = note  # type: ignore[method-assign]
    fleet.operator.deliver(topic, payload)
    device.work(fleet.now)
    device.agent._complain = said  # type: ignore[method-assign]
    return reasons


def reply(fleet: SealedFleet, kind: type) -> tuple[str, bytes, Envelope]:
    """The last message of that type that the coordinator said to the device."""
    return fleet.operator.of(kind, f"/{PI}/down")[-1]


def test_a_fleet_trains_under_seals_and_nothing_is_refused(fleet: SealedFleet) -> None:
    fleet.until(lambda: len(fleet.committed) >= 3)
    assert fleet.reasons == set()
    assert all(payload[-SEALED_BYTES:-72] == b"\x06\x58\x48" for _, payload in fleet.operator.said)


@pytest.mark.parametrize("kind", [Task, Receipt, Withdraw, Welcome, Chunk])
def test_a_broker_operator_cannot_forge_a_message_of_the_coordinator(fleet: SealedFleet, kind: type) -> None:
    fleet.until(lambda: kind is Withdraw or fleet.operator.of(kind, f"/{PI}/down"))
    if kind is Withdraw:
        topic = TOPICS.device(PI, "down")
        payload = sealed(topic, encode(Envelope(1, 10**6, 0, Withdraw("r/1", "x"))), load_signer(new_signing_key()))
    else:
        topic, payload, _ = reply(fleet, kind)
    own = load_signer(new_signing_key())
    assert heard_by_device(fleet, topic, unsealed(payload)) == ["unsigned"]
    assert heard_by_device(fleet, topic, sealed(topic, unsealed(payload), own)) == ["unknown-key"]
    online = fleet.office.keys.online
    altered = bytearray(payload[:-72] + online.key_id + payload[-64:])
    altered[5] ^= 1
    assert heard_by_device(fleet, topic, bytes(altered)) == ["signature"]


def test_a_broker_operator_cannot_forge_a_task(fleet: SealedFleet) -> None:
    _, payload, said = reply(fleet, Task)
    assert isinstance(said.body, Task)
    forged = Envelope(said.boot, said.sequence + 10**6, 0, replace(said.body, round=said.body.round + 100, seed=1))
    topic = TOPICS.device(PI, "down")
    assert heard_by_device(fleet, topic, encode(forged)) == ["unsigned"]
    # With a seal that was right for what it was made for.
    assert heard_by_device(fleet, topic, b"\xa7" + encode(forged)[1:] + payload[-SEALED_BYTES:]) == ["signature"]
    task = fleet.devices[PI].agent.job.task
    assert task is None or task.round < 100


def test_a_broker_operator_cannot_forge_a_receipt_so_that_an_update_is_lost(fleet: SealedFleet) -> None:
    device = fleet.devices[PI]
    fleet.until(lambda: device.store.outbox())
    (offer,) = device.store.outbox()
    receipt = Envelope(fleet.store.epoch, 10**6, 0, Receipt(offer.blob.digest, offer.task, "accepted"))
    assert heard_by_device(fleet, TOPICS.device(PI, "down"), encode(receipt)) == ["unsigned"]
    assert list(device.store.outbox()) == [offer]


def test_a_broker_operator_cannot_give_one_device_what_was_said_to_another(fleet: SealedFleet) -> None:
    fleet.until(lambda: fleet.operator.of(Task, "/pi-2/down"))
    _, payload, _ = fleet.operator.of(Task, "/pi-2/down")[-1]
    assert heard_by_device(fleet, TOPICS.device(PI, "down"), payload) == ["signature"]


def test_a_replayed_task_receipt_or_welcome_is_refused_and_does_no_harm(fleet: SealedFleet) -> None:
    fleet.until(lambda: len(fleet.committed) >= 3)
    before = fleet.devices[PI].agent.job
    for kind in (Task, Receipt, Welcome):
        topic, payload, _ = fleet.operator.of(kind, f"/{PI}/down")[0]
        assert heard_by_device(fleet, topic, payload) == ["replay"], kind
    assert fleet.devices[PI].agent.job == before


def test_a_replayed_task_of_an_older_version_is_refused_after_a_restart_of_the_device_too(fleet: SealedFleet) -> None:
    fleet.until(lambda: len(fleet.committed) >= 2)
    topic, old, said = fleet.operator.of(Task, f"/{PI}/down")[0]
    (_, welcome, _) = fleet.operator.of(Welcome, f"/{PI}/down")[0]
    device = fleet.devices[PI]
    device.stop()
    device.start()
    # Before the coordinator has heard of it, and with the answer to a hello of another day.
    assert heard_by_device(fleet, topic, old) == ["replay"]
    assert heard_by_device(fleet, topic, welcome) == ["replay"]
    assert heard_by_device(fleet, topic, old) == ["replay"]
    count = len(fleet.committed)
    fleet.until(lambda: len(fleet.committed) >= count + 2)
    assert heard_by_device(fleet, topic, old) == ["replay"]
    assert isinstance(said.body, Task)


@pytest.mark.parametrize("kind", [Offer, TaskReport, Chunk])
def test_a_broker_operator_cannot_forge_an_update(fleet: SealedFleet, kind: type) -> None:
    topic, payload, said = fleet.operator.of(kind, f"/{PI}/up")[-1]
    accepted = len(fleet.committed)
    forged = encode(Envelope(said.boot, said.sequence + 10**6, 0, said.body))
    other = load_signer(new_signing_key())
    for attempt, reason in (
        (forged, "unsigned"),
        (sealed(topic, forged, other), "unknown-key"),
        (b"\xa7" + forged[1:] + payload[-SEALED_BYTES:], "signature"),
        (payload, "replay"),
    ):
        fleet.operator.deliver(topic, attempt)
        fleet.turns(0.1)
        assert reason in fleet.reasons
    fleet.until(lambda: len(fleet.committed) >= accepted + 1)


def test_a_broker_operator_cannot_forge_a_model(fleet: SealedFleet) -> None:
    """A model comes in chunks that are sealed, and is named by the digest in a task that is."""
    topic, _, said = fleet.operator.of(Chunk, f"/{PI}/down/blob")[-1]
    assert isinstance(said.body, Chunk)
    poisoned = replace(said.body, data=bytes(len(said.body.data)))
    assert heard_by_device(fleet, topic, encode(Envelope(said.boot, 10**6, 0, poisoned))) == ["unsigned"]


def test_a_device_cannot_speak_for_another_even_with_the_brokers_help(fleet: SealedFleet) -> None:
    own = fleet.devices["pi-2"].trusted
    topic, _, said = fleet.operator.of(Offer, f"/{PI}/up")[-1]
    forged = own.seal(topic, encode(Envelope(said.boot, 10**6, 0, said.body)))
    fleet.operator.deliver(topic, forged)
    fleet.turn()
    assert fleet.reasons == {"unknown-key"}


def test_a_replay_from_before_a_restart_of_the_coordinator_adds_no_update(fleet: SealedFleet) -> None:
    fleet.until(lambda: len(fleet.committed) >= 2)
    old = [(t, p) for kind in (Offer, Chunk, TaskReport) for t, p, _ in fleet.operator.of(kind, f"/{PI}/up")]
    fleet.kill_coordinator()
    fleet.start()
    for topic, payload in old:
        fleet.operator.deliver(topic, payload)
    count = len(fleet.committed)
    fleet.until(lambda: len(fleet.committed) >= count + 2)
    assert all(committed.devices == 2 for committed in fleet.committed)
