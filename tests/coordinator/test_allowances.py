"""A run under a daily budget: devices get leaner codecs, rest, wake at midnight, and a restart forgets nothing."""

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.budget import DAY_S
from coordinator.codecs import cost_of
from coordinator.reports import Reports
from coordinator.settings import DownlinkSettings
from tests.coordinator.simulation import Simulation, make_settings, write_bundle

PARAMETERS = 4000
CODECS = ("all/float32", "topk:0.1/float16", "topk:0.01/ternary")


def make(folder: Path, day_bytes: int, codecs: tuple[str, ...] = CODECS, **rounds: object) -> Simulation:
    settings = make_settings(folder, **rounds)
    limited = replace(settings.limits, device_bytes_per_day=day_bytes)
    settings = replace(settings, training=replace(settings.training, codecs=codecs), limits=limited)
    fleet = Simulation(folder, settings, write_bundle(folder / "bundle", PARAMETERS))
    fleet.start()
    for i in range(3):
        fleet.add(f"a-usual-device-{i}")
    return fleet


def round_of(fleet: Simulation, codec: str) -> int:
    return cost_of(fleet.settings, fleet.coordinator._course.versions.view("full"), codec).both


def codecs_used(fleet: Simulation) -> list[set[str]]:
    """Of each committed round."""
    return [{update.codec for update in fleet.store.accepted(done.round)} for done in fleet.committed]


def test_without_a_budget_all_send_the_richest(tmp_path: Path) -> None:
    fleet = make(tmp_path, 0)
    fleet.finish()
    assert codecs_used(fleet) == [{"all/float32"}] * 3


def test_a_round_costs_what_was_predicted_to_some_bytes_of_numbers(tmp_path: Path) -> None:
    fleet = make(tmp_path, 0, ("all/float32",))
    fleet.until(lambda: len(fleet.committed) == 1)
    before = {key: traffic.total_bytes for key, traffic in fleet.coordinator._link.traffic.items()}
    fleet.finish()
    predicted = cost_of(fleet.settings, fleet.coordinator._course.versions.view("full"), "all/float32")
    for i in range(3):
        for way, due in (("up", predicted.up), ("down", predicted.down)):
            key = (f"a-usual-device-{i}", way)
            found = (fleet.coordinator._link.traffic[key].total_bytes - before[key]) / 2  # type: ignore[index]
            assert found == pytest.approx(due, rel=0.02)


def test_differences_on_the_way_down_are_predicted_for_who_has_a_model(tmp_path: Path) -> None:
    fleet = make(tmp_path, 0)
    view = fleet.coordinator._course.versions.view("full")
    settings = replace(fleet.settings, downlink=DownlinkSettings("topk:0.1/int8"))
    newcomer, member = (cost_of(settings, view, "all/float16", whole) for whole in (None, view.layout))
    assert newcomer == cost_of(fleet.settings, view, "all/float16", view.layout), "without a downlink codec it is whole"
    assert member.up == newcomer.up
    assert member.down < newcomer.down / 5


def test_a_small_budget_makes_updates_lean_and_every_device_stays_within_it(tmp_path: Path) -> None:
    probe = make(tmp_path / "probe", 0)
    lean, rich = round_of(probe, CODECS[1]), round_of(probe, CODECS[0])
    day = 3 * lean + (rich - lean) // 2
    fleet = make(tmp_path, day)
    fleet.finish()
    assert "all/float32" not in set.union(*codecs_used(fleet))
    assert all(fleet.coordinator._link.today_bytes(device) <= day for device in fleet.agents)


def test_who_has_used_up_its_day_rests_and_goes_on_at_midnight(tmp_path: Path) -> None:
    probe = make(tmp_path / "probe", 0)
    fleet = make(tmp_path, round_of(probe, CODECS[2]) * 3 // 2, count=4)
    fleet.until(lambda: bool(fleet.rejected))
    assert {said.reason for said in fleet.rejected} == {"budget"}
    done = len(fleet.committed)
    assert done >= 1
    for _ in range(50):
        fleet.turn()
    assert len(fleet.committed) == done
    fleet.coordinator.stop()
    with Reports(tmp_path / "state") as reports:
        rows = reports.devices()
    assert {row.rejected for row in rows} == {1}, "counted once a day"
    fleet.wall_s += DAY_S
    fleet.until(lambda: len(fleet.committed) == done + 1)


def test_a_restart_neither_forgets_the_days_bytes_nor_the_codec_of_a_task(tmp_path: Path) -> None:
    fleet = make(tmp_path, 10**6)
    for agent in fleet.agents.values():
        agent.silent = True
    fleet.until(lambda: all(agent.task is not None and agent.fetching is None for agent in fleet.agents.values()))
    spent = {device: fleet.coordinator._link.today_bytes(device) for device in fleet.agents}
    told = {device: task.codec for device, task in fleet.coordinator._course.asking._tasks.items()}
    fleet.coordinator.stop()
    fleet.kill()
    fleet.settings = replace(fleet.settings, training=replace(fleet.settings.training, codecs=CODECS[1:]))
    fleet.start()
    assert {device: task.codec for device, task in fleet.coordinator._course.asking._tasks.items()} == told
    assert all(fleet.coordinator._link.today_bytes(device) >= spent[device] > 0 for device in fleet.agents)


def test_an_update_under_another_codec_than_its_tasks_is_refused(tmp_path: Path) -> None:
    fleet = make(tmp_path, 0, count=1, minimum=2)
    liar = fleet.agents["a-usual-device-0"]
    liar.mangle = lambda offer, payload: (replace(offer, codec=CODECS[1]), payload)
    fleet.until(lambda: bool(fleet.rejected))
    assert fleet.rejected[0].reason == "codec"


def test_the_report_on_devices_says_codec_bytes_of_today_and_who_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = make(tmp_path / "probe", 0)
    fleet = make(tmp_path, round_of(probe, CODECS[2]) * 3 // 2)
    fleet.until(lambda: bool(fleet.rejected))
    fleet.coordinator.stop()
    monkeypatch.setattr("coordinator.reports.time.time", lambda: fleet.wall_s)
    with Reports(tmp_path / "state") as reports:
        resting = [row for row in reports.devices() if row.rests]
        waits = reports.status(fleet.settings.rounds).waiting_for
    assert waits.endswith("of them rest until midnight UTC")
    assert resting
    assert {(row.rests, row.codec) for row in resting} == {("budget", CODECS[2])}
    assert all(row.bytes_today == row.bytes_up + row.bytes_down > 0 for row in resting)
    monkeypatch.setattr("coordinator.reports.time.time", lambda: fleet.wall_s + DAY_S)
    with Reports(tmp_path / "state") as reports:
        assert {(row.rests, row.bytes_today) for row in reports.devices()} == {(None, 0)}
