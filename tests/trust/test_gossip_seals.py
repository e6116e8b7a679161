"""Devices without a hub believe their neighbours by the keys that the coordinator named, and nobody else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import serialization

from coordinator.seals import Seals
from edge_agent.gossip.ear import Ear
from edge_agent.identity import credentials
from edge_agent.trusted import Trusted
from protocol.envelope import Envelope, decode, encode
from protocol.errors import Rejection
from protocol.gossip import Membership, Neighbour, Part, Want, parts
from protocol.keys import new_key
from protocol.sealed import SEALED_BYTES, sealed
from protocol.signing import load_signer
from protocol.transport import Incoming
from tests.simulator.gossip_hall import RUN, SETTINGS, Device, Hall
from tests.tiny import TOTAL
from tests.trust.office import FLEET, Office

NAMES = ("aa", "bb", "cc", "dd")


class SealedHall(Hall):
    """A hall whose devices have identities, and whose coordinator seals what it says."""

    office: Office
    seals: Seals

    def sealed(self, topic: str, said: Envelope) -> bytes:
        return self.seals.seal(topic, encode(replace(said, body=self.seals.signed(said.body))))

    def trusted(self, device: Device) -> Trusted | None:
        state = device.folder / "state"
        if not credentials(state).key.exists():
            self.office.enrol(device.name, state)
        return Trusted(state, FLEET, device.store, lambda: self.office.now_s)

    def key_of(self, device: str) -> bytes | None:
        return public(credentials(self.folder / device / "state").key.read_bytes())


def public(private: bytes) -> bytes:
    key = serialization.load_pem_private_key(private, None)
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def made(folder: Path, office: Office) -> SealedHall:
    SealedHall.office = office
    hall = SealedHall(folder, SETTINGS, FLEET, names=NAMES)
    hall.seals = Seals(office.keys, office.trust, lambda: office.now_s, required=True)
    hall.seals.take_bundle(hall.bundle)
    return hall


def test_a_fleet_with_identities_gossips_and_what_others_say_is_refused_and_counted(
    tmp_path: Path, office: Office
) -> None:
    hall = made(tmp_path / "hall", office)
    plain = Hall(tmp_path / "plain")
    for each in (plain, hall):
        each.assign(1, np.ones(TOTAL, np.float32), 5)
    said: list[tuple[str, bytes]] = []
    carried = hall.broker.deliver

    def overhear(topic: str, payload: bytes, *, retain: bool = False) -> None:
        carried(topic, payload, retain=retain)
        if topic.endswith("/gossip"):
            said.append((topic, payload))
            # Each part once more with a number that may be wanted, sealed by a device that is no neighbour of theirs.
            forged(topic, payload)

    stranger = load_signer(new_key())

    def forged(topic: str, payload: bytes) -> None:
        envelope = decode(payload)
        assert isinstance(envelope, Envelope)
        assert isinstance(envelope.body, Part)
        ahead = replace(envelope.body, number=envelope.body.number + 1, data=bytes(len(envelope.body.data)))
        carried(topic, sealed(topic, encode(replace(envelope, sequence=envelope.sequence + 99, body=ahead)), stranger))
        carried(topic, encode(replace(envelope, body=ahead)))

    hall.broker.deliver = overhear  # type: ignore[method-assign]
    found, expected = hall.collect(1), plain.collect(1)
    assert {n: m.tobytes() for n, m in found.items()} == {n: m.tobytes() for n, m in expected.items()}
    for device in hall.devices.values():
        refused = device.agent._gossiping.refused
        assert refused["unknown-key"] > 3
        assert refused["unsigned"] > 3
        gossip = device.agent.standing().gossip
        assert gossip is not None
        assert gossip.refused == refused["unknown-key"] + refused["unsigned"]
    assert len({payload[-SEALED_BYTES:] for _, payload in said}) == len(said)
    hall.seals.close()
    hall.end()
    plain.end()


# The ear alone

PRIVATE = {name: new_key() for name in ("aa", "bb", "cc")}
TOPIC = "sf/1/hall/bb/gossip"


def told(epoch: int, **keys: bytes) -> Membership:
    near = tuple(Neighbour(name, 0.3, key=public(key)) for name, key in keys.items())
    return Membership(RUN, epoch, near, "all/sign", 0.5)


def say(
    sequence: int, key: bytes = PRIVATE["bb"], boot: int = 1, topic: str = TOPIC, sealed_for: str = TOPIC
) -> Incoming:
    body = next(parts(1, 1, b"payload"))
    return Incoming(topic, sealed(sealed_for, encode(Envelope(boot, sequence, 0, body)), load_signer(key)))


def why(ear: Ear, message: Incoming) -> str:
    wrong = ear.check("bb", message)
    if wrong is None:
        said = decode(message.payload)
        assert isinstance(said, Envelope)
        wrong = ear.fresh("bb", said)
    return "" if wrong is None else wrong.reason


def test_a_neighbour_is_believed_by_its_key_on_its_topic_and_once() -> None:
    ear = Ear(lambda: True)
    assert why(ear, say(1)) == "early"
    assert ear.learn(told(1, bb=PRIVATE["bb"]))
    assert not ear.learn(told(1, bb=PRIVATE["bb"]))
    assert why(ear, say(1)) == ""
    assert why(ear, say(1)) == "replay"
    assert why(ear, say(2, sealed_for="sf/1/hall/bb/want/cc")) == "signature"
    assert why(ear, say(3, PRIVATE["cc"])) == "unknown-key"
    assert why(ear, Incoming(TOPIC, encode(Envelope(1, 4, 0, Want(1, 1))))) == "unsigned"
    altered = bytearray(say(5).payload)
    altered[20] ^= 1
    assert why(ear, Incoming(TOPIC, bytes(altered))) == "signature"


def test_an_earlier_start_of_a_neighbour_is_over_until_the_next_epoch() -> None:
    ear = Ear(lambda: True)
    ear.learn(told(1, bb=PRIVATE["bb"]))
    assert why(ear, say(7)) == ""
    assert why(ear, say(1, boot=2)) == ""
    assert why(ear, say(8)) == "replay"
    ear.learn(told(1, bb=PRIVATE["bb"]))
    assert why(ear, say(9)) == "replay"
    ear.learn(told(2, bb=PRIVATE["bb"]))
    assert why(ear, say(9)) == ""


def test_keys_of_the_epoch_before_hold_and_a_renewed_key_stands_beside_the_old_one() -> None:
    ear = Ear(lambda: True)
    ear.learn(told(1, bb=PRIVATE["bb"]))
    ear.learn(told(1, bb=PRIVATE["cc"]))
    assert why(ear, say(1)) == why(ear, say(2, PRIVATE["cc"])) == ""
    ear.learn(told(1, bb=PRIVATE["aa"]))
    assert why(ear, say(3)) == "unknown-key"
    ear.learn(told(2, cc=PRIVATE["cc"]))
    assert why(ear, say(4, PRIVATE["cc"])) == ""
    ear.learn(told(3, cc=PRIVATE["cc"]))
    assert why(ear, say(5, PRIVATE["cc"])) == "unknown-key"


def test_what_is_no_key_believes_nobody() -> None:
    ear = Ear(lambda: True)
    ear.learn(Membership(RUN, 1, (Neighbour("bb", 0.3, key=b"no key"),), "all/sign", 0.5))
    assert why(ear, say(1)) == "unknown-key"
    assert isinstance(ear.check("bb", say(1)), Rejection)
