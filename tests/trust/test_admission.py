"""Whose messages a coordinator hears: looked up at each, in the file that the operator's commands write to."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coordinator.daemon import Coordinator
from coordinator.trust import Admission
from protocol.errors import Rejection
from tests.coordinator.simulation import Simulation
from tests.trust.office import Office

DAY_S = 86400.0


@pytest.fixture
def admission(office: Office) -> Iterator[Admission]:
    opened = Admission(office.trust, lambda: office.now_s)
    yield opened
    opened.close()


def reason(admission: Admission, device: str) -> str | None:
    why = admission(device)
    return None if why is None else why.reason


def test_a_device_is_heard_from_its_enrolment_until_its_revocation(
    office: Office, admission: Admission, tmp_path: Path
) -> None:
    assert reason(admission, "pi-1") == "not-enrolled"
    office.enrol("pi-1", tmp_path / "pi-1")
    assert reason(admission, "pi-1") is None
    assert reason(admission, "pi-2") == "not-enrolled"
    office.trust.revoke("pi-1", office.now_s)
    assert reason(admission, "pi-1") == "revoked"
    office.enrol("pi-1", tmp_path / "new", office.token(device="pi-1"))
    assert reason(admission, "pi-1") is None


def test_a_device_whose_certificate_expired_in_the_middle_of_a_session_is_not_heard(
    office: Office, admission: Admission, tmp_path: Path
) -> None:
    office.enrol("pi-1", tmp_path / "pi-1")
    office.now_s += 29.9 * DAY_S
    assert reason(admission, "pi-1") is None
    office.now_s += 0.2 * DAY_S
    assert reason(admission, "pi-1") == "expired"


def test_to_ask_at_every_message_costs_microseconds(office: Office, admission: Admission, tmp_path: Path) -> None:
    office.enrol("pi-1", tmp_path / "pi-1")
    admission("pi-1")
    began = time.process_time()
    for _ in range(2000):
        admission("pi-1")
    # 3 to 10 us each; a file that was read each time would take a thousand times as long.
    assert time.process_time() - began < 1.0


def test_a_device_that_is_revoked_at_work_is_out_of_its_round_and_the_others_go_on(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path)
    revoked: set[str] = set()

    def admit(device: str) -> Rejection | None:
        return Rejection("revoked", "this device's identity was revoked") if device in revoked else None

    coordinator: Coordinator = fleet.coordinator
    coordinator._admit = admit
    try:
        fleet.until(lambda: len(fleet.committed) == 1)
        revoked.add("dev-2")
        fleet.until(lambda: fleet.store.opened_round() is not None)
        # One that was not expected of it.
        fleet.agents["dev-2"].restart()

        def place() -> str:
            opened = fleet.store.opened_round()
            return "" if opened is None else {t.device: t.phase for t in opened.tasks}.get("dev-2", "")

        fleet.until(lambda: place() == "out")
        assert not coordinator._fleet.has("dev-2")
        assert {r.device: r.reason for r in fleet.rejected} == {"dev-2": "revoked"}
    finally:
        fleet.store.close()
