"""A whole fleet over mTLS, as an operator has it: tokens, rounds, renewal while it trains, a revocation, a restart."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.errors import NotEnrolledError
from tests.conftest import require_broker
from tests.real_fleet import RealFleet

pytestmark = pytest.mark.real


@pytest.fixture
def fleets() -> Iterator[list[RealFleet]]:
    started: list[RealFleet] = []
    yield started
    for fleet in started:
        fleet.stop()


def launch(fleets: list[RealFleet], folder: Path, *, rounds: int, certificate_days: float = 30.0) -> RealFleet:
    require_broker("mosquitto")
    fleet = RealFleet(folder, "mosquitto", rounds, enrols=True, certificate_days=certificate_days)
    fleets.append(fleet)
    fleet.start()
    return fleet


def log_of(fleet: RealFleet, name: str) -> str:
    return (fleet.folder / "logs" / f"{name}.log").read_text()


def identities(fleet: RealFleet) -> dict[str, str]:
    return {row["device"]: row["identity"] for row in fleet.ask("devices")["devices"]}


def test_a_fleet_enrols_and_trains_over_mtls_and_goes_on_after_a_restart(
    tmp_path: Path, fleets: list[RealFleet]
) -> None:
    fleet = launch(fleets, tmp_path, rounds=6)
    fleet.until(lambda: len(fleet.committed()) >= 2)
    assert fleet.coordinator is not None
    fleet.kill(fleet.coordinator)
    fleet.start_coordinator()
    fleet.finish()
    assert sorted(set(fleet.committed()))[-1] == 6
    assert identities(fleet) == dict.fromkeys(("device-00", "device-01", "device-02"), "valid")
    assert all(row["accepted"] == 6 for row in fleet.ask("devices")["devices"])
    assert '"url": "mqtts://127.0.0.1' in log_of(fleet, "coordinator")


def test_a_device_that_was_never_enrolled_ends_with_exit_code_5_and_says_how_to(
    tmp_path: Path, fleets: list[RealFleet]
) -> None:
    fleet = RealFleet(tmp_path, "mosquitto", rounds=1, enrols=True)
    fleets.append(fleet)
    fleet.start_agent("device-00")
    assert fleet.agents["device-00"].process.wait(30) == NotEnrolledError.exit_code
    assert "edge-agent enroll --url HOST:PORT --token TOKEN" in log_of(fleet, "device-00")


def test_a_revoked_device_is_out_at_once_and_back_with_a_token_of_its_own_and_no_log_has_a_secret(
    tmp_path: Path, fleets: list[RealFleet]
) -> None:
    fleet = launch(fleets, tmp_path, rounds=1000)
    fleet.until(lambda: len(fleet.committed()) >= 1)
    assert fleet.ask("devices", "revoke", "device-01") == {"device": "device-01", "revoked": 1}
    fleet.until(lambda: "revoked device=device-01 its session was ended" in log_of(fleet, "coordinator"))
    fleet.until(lambda: "disconnected reason=" in log_of(fleet, "device-01"))
    assert identities(fleet)["device-01"] == "revoked"
    accepted = {row["device"]: row["accepted"] for row in fleet.ask("devices")["devices"]}
    # Rounds are of three, so that nothing is committed without it.
    committed = len(fleet.committed())
    token = fleet.token("--device", "device-01")
    assert fleet.enrol("device-00", token).exit_code == NotEnrolledError.exit_code
    assert fleet.enrol("device-01", token).exit_code == 0
    fleet.until(lambda: len(fleet.committed()) >= committed + 2)
    assert identities(fleet)["device-01"] == "valid"
    again = {row["device"]: row["accepted"] for row in fleet.ask("devices")["devices"]}
    assert again["device-01"] > accepted["device-01"]
    fleet.stop()
    assert secrets_in_logs(fleet, token) == []


def secrets_in_logs(fleet: RealFleet, token: str) -> list[str]:
    """Of the private keys and one token, which are in the logs of any process."""
    logs = "".join(path.read_text() for path in (fleet.folder / "logs").iterdir())
    logs += (fleet.folder / "coordinator" / "broker" / "broker.log").read_text()
    keys = [*fleet.folder.glob("trust/**/*.key"), *fleet.folder.glob("device-*/state/identity/identity.pem")]
    # Of root, broker and coordinator; to sign bundles and messages; of devices.
    assert len(keys) == 3 + 2 + fleet.devices
    return [name for name in (token[56:80], *(path.read_text().splitlines()[1] for path in keys)) if name in logs]


def test_certificates_are_renewed_while_the_fleet_trains(tmp_path: Path, fleets: list[RealFleet]) -> None:
    fleet = launch(fleets, tmp_path, rounds=1000, certificate_days=30 / 86400)
    before = (tmp_path / "device-00" / "state" / "identity" / "identity.pem").read_bytes()
    fleet.until(lambda: "certificate renewed" in log_of(fleet, "device-00"))
    assert (tmp_path / "device-00" / "state" / "identity" / "identity.pem").read_bytes() != before
    committed = len(fleet.committed())
    fleet.until(lambda: len(fleet.committed()) >= committed + 1)
    assert "renewed device=device-00" in log_of(fleet, "coordinator")
