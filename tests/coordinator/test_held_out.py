"""What devices say of a version on their own held-out data: never mixed with the averaged model's accuracy."""

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.reports import Reports
from protocol.messages import HeldOut, Offer
from tests.coordinator.simulation import Simulation

TOLD = {"dev-0": 0.9, "dev-1": 0.5, "dev-2": 0.7}


def told(offer: Offer, payload: bytes, accuracy: float) -> tuple[Offer, bytes]:
    """A tenth better every round."""
    return replace(offer, held_out=HeldOut(20, 0.3, min(1.0, accuracy + 0.1 * (offer.round - 1)))), payload


def fleet(folder: Path) -> Simulation:
    made = Simulation.make(folder, count=2)
    for device, accuracy in TOLD.items():
        made.agents[device].mangle = lambda offer, payload, a=accuracy: told(offer, payload, a)  # type: ignore[misc]
    return made


def test_mean_and_worst_stand_with_the_version_that_devices_evaluated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = fleet(tmp_path)
    with caplog.at_level("INFO"):
        made.finish()
    made.kill()
    with Reports(tmp_path / "state") as reports:
        rows, status = reports.rounds(), reports.status(made.settings.rounds)
    assert [(row.version, row.device_mean, row.device_worst) for row in rows] == [
        (0, pytest.approx(0.7), 0.5),
        (1, pytest.approx(0.8), 0.6),
        (2, None, None),
    ]
    # The averaged model's is the coordinator's own, of its own data.
    assert [row.accuracy for row in rows[1:]] == [event.accuracy for event in made.committed]
    assert (status.device_version, status.device_worst, status.device_worst_name) == (1, 0.6, "dev-1")
    assert status.device_mean == pytest.approx(0.8)
    assert "on devices version=1 devices=3 accuracy_mean=0.8000 accuracy_worst=0.6000 worst=dev-1" in caplog.text


def test_devices_that_say_nothing_are_not_counted(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.agents["dev-1"].mangle = lambda offer, payload: (offer, payload)
    made.finish()
    made.kill()
    with Reports(tmp_path / "state") as reports:
        assert reports.rounds()[0].device_worst == 0.7
        assert reports.rounds()[0].device_mean == pytest.approx(0.8)


def test_a_loss_that_is_no_number_is_refused(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    odd = HeldOut(20, float("nan"), 0.5)
    made.agents["dev-0"].mangle = lambda offer, payload: (replace(offer, held_out=odd), payload)
    made.until(lambda: bool(made.rejected))
    assert made.rejected[0].reason == "figures"


def test_local_heads_stand_beside_the_versions_own_accuracy_and_never_in_it(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    heads = {"dev-0": (0.95, 0.93), "dev-1": (0.75, 0.85)}
    for device, (personal, mixed) in heads.items():
        made.agents[device].mangle = lambda offer, payload, p=personal, m=mixed: (  # type: ignore[misc]
            replace(offer, held_out=HeldOut(20, 0.3, 0.5, p, m)),
            payload,
        )
    made.finish()
    made.kill()
    with Reports(tmp_path / "state") as reports:
        first, second, last = reports.rounds()
    for row in (first, second):
        assert row.personal_mean == pytest.approx(0.85)
        assert row.mixed_mean == pytest.approx(0.89)
        assert (row.personal_worst, row.mixed_worst) == (0.75, 0.85)
        # A third device told of the version alone: it counts there, and nowhere else.
        assert row.device_worst == 0.5
    assert (last.personal_mean, last.personal_worst, last.mixed_mean, last.mixed_worst) == (None,) * 4
    assert first.device_mean == pytest.approx((0.5 + 0.5 + 0.7) / 3)
    assert second.device_mean == pytest.approx((0.5 + 0.5 + 0.8) / 3)


def test_where_no_device_tells_of_a_head_there_is_none_to_show(tmp_path: Path) -> None:
    made = fleet(tmp_path)
    made.finish()
    made.kill()
    with Reports(tmp_path / "state") as reports:
        assert {(row.personal_mean, row.mixed_worst) for row in reports.rounds()} == {(None, None)}
