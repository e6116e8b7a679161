"""The fleet's keys on devices: which rings and releases they go by, and which never."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.fleet_keys import new_online, new_release
from edge_agent.enrolment import renew
from edge_agent.keyring import keep_trusted, load_ring
from edge_agent.trusted import Trusted
from protocol.envelope import Envelope, encode
from protocol.errors import ConfigurationError, Rejection
from protocol.keyring import Keyring, sign_ring
from protocol.messages import Hello, Receipt, Task
from protocol.release import DAY_S, RELEASE_FILE, Release, sign_release
from protocol.signing import ed25519_verifier, load_signer
from tests import tiny
from tests.trust.office import FLEET, Office
from tests.trust.sealed_fleet import SealedFleet
from tests.trust.statements import DIGEST, KEY, OTHER, release, ring

PI = "pi-1"


@pytest.fixture
def fleet(tmp_path: Path, office: Office) -> Iterator[SealedFleet]:
    made = SealedFleet(tmp_path, office, PI, count=1000)
    yield made
    made.close()


def rotated(fleet: SealedFleet, *what: str) -> None:
    for each in what:
        held = fleet.office.keys
        assert held.release is not None
        now_s = fleet.office.now_s
        fleet.office.keys = (
            new_online(held, held.release, now_s) if each == "online" else new_release(held, held.release, None, now_s)
        )


def test_a_device_that_missed_two_rings_follows_them_and_trains_on(fleet: SealedFleet) -> None:
    fleet.until(lambda: len(fleet.committed) >= 1)
    device = fleet.devices[PI]
    device.stop()
    rotated(fleet, "release", "online", "release")
    fleet.turns(3.0)
    device.start()
    assert device.trusted.ring == 1
    count = len(fleet.committed)
    fleet.until(lambda: len(fleet.committed) >= count + 2)
    assert device.trusted.ring == 4
    device.stop()
    device.start()
    assert device.trusted.ring == 4, "it is on the disk"


def test_a_device_that_is_there_is_told_of_new_keys_and_loses_no_round(fleet: SealedFleet) -> None:
    fleet.until(lambda: len(fleet.committed) >= 1)
    rotated(fleet, "online", "release")
    count = len(fleet.committed)
    fleet.until(lambda: fleet.devices[PI].trusted.ring == 3 and len(fleet.committed) >= count + 3)
    assert not [report for report in fleet.reports if report.state == "refused"]


def test_a_device_takes_no_ring_from_a_broker_operator_and_never_an_older_one(fleet: SealedFleet) -> None:
    fleet.until(lambda: len(fleet.committed) >= 1)
    device, held = fleet.devices[PI], fleet.office.keys
    forged = replace(held.ring, version=2, release=(KEY.public,))
    verdict = device.trusted.adopt(Keyring(2, (sign_ring(forged, KEY),)))
    assert isinstance(verdict, Rejection)
    assert verdict.reason == "unknown-key"
    rotated(fleet, "online")
    fleet.until(lambda: device.trusted.ring == 2)
    assert device.trusted.adopt(Keyring(1, held.rings)) is False
    assert device.trusted.ring == 2


def test_an_online_key_that_was_replaced_is_not_believed_any_more(fleet: SealedFleet) -> None:
    fleet.until(lambda: len(fleet.committed) >= 1)
    stolen, device = fleet.office.keys.online, fleet.devices[PI]
    rotated(fleet, "online")
    fleet.until(lambda: device.trusted.ring == 2)
    fleet.seals._keys = replace(fleet.seals._keys, online=stolen)
    tasks = len(fleet.operator.of(Task))
    fleet.until(lambda: len(fleet.operator.of(Task)) > tasks)
    fleet.turns(1.0)
    assert device.agent.rejected > 0


def test_a_compromised_coordinator_without_the_release_key_cannot_give_a_device_another_graph(
    fleet: SealedFleet,
) -> None:
    """It has the online key and all else on its machine, but the release key, and a bundle of its own."""
    held = fleet.office.keys
    fleet.until(lambda: len(fleet.committed) >= 1)
    (_, _, said) = fleet.operator.of(Task)[-1]
    assert isinstance(said.body, Task)
    trusted = fleet.devices[PI].trusted
    evil = replace(said.body, manifest=replace(said.body.manifest, digest=bytes(32)))
    assert held.release is not None
    own = sign_release(replace(release(manifest=bytes(32)), made=int(fleet.office.now_s), expires=2**40), KEY)
    by_online = own[:0] + sign_release(release(manifest=bytes(32), expires=2**40), held.online)
    for data, why in (
        (said.body.release, "release"),
        (own, "unknown-key"),
        (by_online, "unknown-key"),
        (None, "unsigned"),
    ):
        verdict = trusted.release(replace(evil, release=data))
        assert isinstance(verdict, Rejection)
        assert verdict.reason == why


def test_a_task_under_an_expired_release_is_refused_and_the_coordinator_hears_why(fleet: SealedFleet) -> None:
    fleet.until(lambda: len(fleet.committed) >= 1)
    fleet.devices[PI].wall_s = fleet.office.now_s + 91 * DAY_S
    fleet.until(lambda: any(report.reason == "expired" for report in fleet.reports))
    (said, *_) = [report.detail for report in fleet.reports if report.reason == "expired"]
    assert "fleet-export sign" in said
    assert "clock" in said


def test_a_clock_of_1970_goes_by_the_newest_time_that_was_signed(fleet: SealedFleet) -> None:
    device = fleet.devices[PI]
    device.wall_s = 0.0
    assert device.trusted.now_s() == fleet.office.keys.ring.made
    fleet.until(lambda: len(fleet.committed) >= 1)
    fleet.office.now_s += 365 * DAY_S
    rotated(fleet, "online")
    fleet.until(lambda: device.trusted.ring == 2)
    device.stop()
    device.start()
    device.wall_s = 0.0
    assert device.trusted.now_s() == int(fleet.office.now_s)


def test_a_signed_time_far_ahead_of_a_clock_that_is_set_is_not_gone_by(fleet: SealedFleet) -> None:
    device, now_s = fleet.devices[PI], int(fleet.office.now_s)
    fleet.until(lambda: len(fleet.committed) >= 1)
    assert fleet.office.keys.release is not None
    ahead = replace(release(), made=now_s + 200 * DAY_S, expires=now_s + 290 * DAY_S)
    (_, _, said) = fleet.operator.of(Task)[-1]
    assert isinstance(said.body, Task)
    task = replace(
        said.body,
        manifest=replace(said.body.manifest, digest=DIGEST),
        release=sign_release(ahead, fleet.office.keys.release),
    )
    assert device.trusted.release(task) == ahead
    assert device.trusted.now_s() < now_s + DAY_S
    device.wall_s = 0.0
    assert device.trusted.release(task) == ahead
    assert device.trusted.now_s() == ahead.made, "a clock that was never set says nothing"
    keep_trusted(device.state, FLEET, 1, fleet.office.keys.rings, anew=True)
    assert Trusted(device.state, FLEET, device.store, device.wall).now_s() < now_s + DAY_S, "enrolled again"


def test_a_version_below_the_highest_seen_is_refused_unless_the_device_still_holds_it(
    fleet: SealedFleet, tmp_path: Path
) -> None:
    """Also where every signature is right: a coordinator in wrong hands has all releases that there ever were."""

    def trained() -> bool:
        return bool([body for body in fleet.operator.bodies(Receipt) if body.task.startswith(fleet.store.run)])  # type: ignore[union-attr]

    first = fleet.bundle
    fleet.until(trained)
    fleet.start_on(tiny.write_bundle(tmp_path / "second", version=2))
    fleet.until(trained)
    older = tiny.write_bundle(tmp_path / "older", version=3)
    assert fleet.office.keys.release is not None
    signed = Release(FLEET, older.digest, 1, int(fleet.office.now_s), int(fleet.office.now_s) + DAY_S)
    (older.root / RELEASE_FILE).write_bytes(sign_release(signed, fleet.office.keys.release))
    fleet.start_on(older)
    fleet.until(lambda: any(report.reason == "rollback" for report in fleet.reports))
    (said, *_) = [report.detail for report in fleet.reports if report.reason == "rollback"]
    assert "of version 1, version 2 was seen here" in said
    assert not trained()
    fleet.start_on(first)
    fleet.until(trained)


def test_a_device_without_a_ring_believes_as_before_and_is_given_none_by_message(
    fleet: SealedFleet, caplog: pytest.LogCaptureFixture
) -> None:
    device = fleet.devices[PI]
    device.stop()
    for name in ("keyring.cbor", "newest.txt"):
        (device.state / "identity" / name).unlink()
    device.start()
    assert "this device has no keys of its fleet" in caplog.text
    fleet.until(lambda: len(fleet.committed) >= 1)
    assert device.trusted.ring is None
    assert device.trusted.adopt(Keyring(1, fleet.office.keys.rings)) is False
    hello = fleet.operator.bodies(Hello)[-1]
    assert isinstance(hello, Hello)
    assert hello.ring is None


def test_a_ring_that_is_gone_is_missed_and_not_done_without(fleet: SealedFleet) -> None:
    device = fleet.devices[PI]
    (device.state / "identity" / "keyring.cbor").unlink()
    with pytest.raises(ConfigurationError, match=r"had the keys of its fleet.* Enrol it again with a token"):
        Trusted(device.state, FLEET, device.store, device.wall)
    keep_trusted(device.state, FLEET, 1, fleet.office.keys.rings, anew=True)
    assert Trusted(device.state, FLEET, device.store, device.wall).ring == 1


def test_an_agent_at_work_goes_by_the_ring_of_an_enrolment_in_a_trust_folder_that_was_made_anew(
    fleet: SealedFleet, tmp_path: Path
) -> None:
    device = fleet.devices[PI]
    fleet.until(lambda: len(fleet.committed) >= 1)
    rotated(fleet, "online")
    fleet.until(lambda: device.trusted.ring == 2)
    anew = Office(tmp_path / "anew" / "trust")
    anew.enrol(PI, device.state)
    anew.close()
    device.trusted.seal("topic", b"\xa6")
    assert device.trusted.ring == 1
    online = anew.keys.online
    sealing = device.trusted._verifiers[0][0]
    assert sealing.key_id == online.key_id


def test_a_ring_that_was_altered_on_the_disk_is_said_with_a_remedy(fleet: SealedFleet) -> None:
    device = fleet.devices[PI]
    (device.state / "identity" / "keyring.cbor").write_bytes(b"no ring" * 20)
    with pytest.raises(ConfigurationError, match="Enrol it again with a token that is for it"):
        Trusted(device.state, FLEET, device.store, device.wall)


def test_a_seal_says_its_key() -> None:
    seal = KEY.seal("message", b"data")
    assert ed25519_verifier(KEY.public).holds(seal, "message", b"data")
    assert not ed25519_verifier(KEY.public).holds(seal, "message", b"date")
    assert not ed25519_verifier(OTHER.public).holds(seal, "message", b"data")
    with pytest.raises(ValueError, match="neither Ed25519 nor P-256"):
        load_signer(_rsa())


def _rsa() -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def test_a_trust_folder_of_before_a_rotation_is_said_with_the_ring_to_get_above(
    fleet: SealedFleet, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.until(lambda: len(fleet.committed) >= 1)
    device, old = fleet.devices[PI], fleet.office.keys
    rotated(fleet, "online")
    fleet.until(lambda: device.trusted.ring == 2)
    fleet.seals._keys = old
    for path in (*old.folder.glob("ring-0002.cbor"), *old.folder.glob("online-*.key")):
        path.unlink()
    fleet.kill_coordinator()
    fleet.office.keys = old
    fleet.start()
    fleet.until(lambda: "goes by ring 2, and this coordinator has 1" in caplog.text)
    said = [record for record in caplog.records if "goes by ring" in record.message]
    assert len(said) <= 5
    rotated(fleet, "online", "online")
    count = len(fleet.committed)
    fleet.until(lambda: device.trusted.ring == 3 and len(fleet.committed) > count)


def test_a_device_greets_where_the_coordinators_key_has_expired(fleet: SealedFleet) -> None:
    fleet.until(lambda: len(fleet.committed) >= 1)
    fleet.turns(3.0)
    device, hellos = fleet.devices[PI], len(fleet.operator.bodies(Hello))
    device.wall_s = fleet.office.now_s + 731 * DAY_S
    fleet.until(lambda: len(fleet.operator.bodies(Hello)) > hellos, turns=200)


# Peers of before there were seals


def test_a_coordinator_hears_no_unsealed_device_unless_it_is_told_to(fleet: SealedFleet) -> None:
    hello = encode(Envelope(1, 1, 0, Hello("0.1.0", "auto")))
    topic = fleet.coordinator._topics.device("pi-old", "up")
    fleet.operator.deliver(topic, hello)
    fleet.turn()
    assert fleet.reasons == {"unsigned"}
    fleet.seals._required = False
    fleet.operator.deliver(topic, hello)
    fleet.turn()
    assert fleet.coordinator._fleet.knows("pi-old")


def test_a_device_of_an_older_coordinator_gets_its_ring_with_the_next_certificate(
    tmp_path: Path, office: Office
) -> None:
    state = tmp_path / "pi-1"
    rings, office.rings = office.rings, lambda: (0, ())  # type: ignore[method-assign]
    office.endpoint.close()
    office.__post_init__()
    identity = office.enrol(PI, state)
    assert load_ring(state, FLEET) is None
    office.rings = rings  # type: ignore[method-assign]
    office.endpoint.close()
    office.__post_init__()
    renew(replace(identity, endpoint=office.url), state)
    assert load_ring(state, FLEET) == office.keys.ring


def test_renewal_brings_no_keys_that_the_known_ones_do_not_vouch_for(tmp_path: Path, office: Office) -> None:
    state = tmp_path / "pi-1"
    office.enrol(PI, state)
    held = load_ring(state, FLEET)
    keep_trusted(state, FLEET, 1, (sign_ring(replace(ring(), version=9), KEY),), anew=False)
    assert load_ring(state, FLEET) == held
    keep_trusted(state, FLEET, 1, (sign_ring(ring(), KEY),), anew=True)
    assert load_ring(state, FLEET) == ring(), "who enrols again has been told whom to believe"
