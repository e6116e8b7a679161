"""A fleet without a hub that stands still though all of its devices are there: what the council does, and what it does
not believe."""

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator import gossip
from protocol.gossip import MAX_NUMBER, Standing
from tests.coordinator.gossip_simulation import GossipAgent, GossipSimulation
from tests.coordinator.test_gossip import NAMES, SETTINGS, begun, report


def test_a_card_that_was_put_back_to_an_earlier_exchange_ends_the_epoch_for_all_who_wait_for_each_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = GossipSimulation.of(tmp_path, count=2)
    device = fleet.device("dev-1")
    fleet.until(lambda: len(device.done) >= 1)
    old = device.card.node
    fleet.until(lambda: len(device.done) >= 7)
    device.card.node = old
    device.restart()
    fleet.finish()
    assert fleet.committed[-1].devices == 4
    assert {membership.newcomer for membership in device.told[1:]} == {False}
    assert device.told[-1].epoch == 2
    assert "no exchange was completed for 60 s, and devices wait: dev-" in caplog.text


class Loop(GossipAgent):
    """It starts, greets, says where it stands, and is killed by its first step."""

    broken = False
    again_at = 0.0

    def work(self, now: float) -> None:
        if self.broken and now >= self.again_at:
            self.again_at = now + 5.0
            self.restart()
        super().work(now)

    def _step(self, now: float) -> None:
        if not self.broken:
            super()._step(now)


def test_a_device_that_is_killed_by_each_training_is_left_out_however_often_it_greets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = GossipSimulation.of(tmp_path, devices=4, count=4)
    looping = fleet.agents["dev-3"] = Loop("dev-3", fleet.broker, fleet.bundle)
    looping.join()
    fleet.until(lambda: len(fleet.committed) == 1)
    looping.broken = True
    fleet.finish()
    assert fleet.committed[-1].devices == 3
    assert "device=dev-3 is left out: others wait for it, and it comes no farther" in caplog.text
    assert "dev-3" not in fleet.allowed[-1]


def test_a_report_of_an_exchange_that_was_not_asked_for_takes_the_run_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet = GossipSimulation.of(tmp_path, count=3)
    fleet.until(lambda: len(fleet.device("dev-0").done) >= 2)
    fleet.device("dev-0").send(Standing(1, MAX_NUMBER, 1.0))
    fleet.turn()
    # Where the next epoch begins goes by what was reported.
    fleet.add("new-1")
    fleet.finish()
    assert "dev-0 says that it completed exchange 4294967296 of epoch 1, and 5 were asked for" in caplog.text
    assert max(membership.begun for device in fleet.devices for membership in device.told) <= 15
    assert [len({c.number for c in device.done}) > 0 for device in fleet.devices] == [True] * 5
    assert fleet.committed[-1].devices == 5


def test_a_member_that_reports_an_epoch_before_the_one_that_it_had_begun_ends_that() -> None:
    council, _ = gossip.due(gossip.here(begun(), "ee", 1.0, model=False), SETTINGS, 1.0)
    council = report(council, 3, 2.0)
    assert gossip.due(council, SETTINGS, 2.0)[1] == gossip.Told()
    council, told = gossip.due(gossip.stands(council, "bb", Standing(1, 5, 1.0), 3.0), SETTINGS, 3.0)
    assert council.epoch == 3
    assert {said.after for said in told.memberships.values()} == {0}
    assert not told.memberships["bb"].newcomer


def test_what_was_asked_for_bounds_reports_of_this_epoch_and_of_the_one_before() -> None:
    council = replace(begun(), begun=20, before=5)
    assert gossip.asked_of(council, Standing(1, 9, 1.0), 30) == Standing(1, 9, 1.0)
    assert gossip.asked_of(council, Standing(1, 99, 1.0, ("aa",)), 30) == Standing(1, 10, 1.0, ("aa",))
    assert gossip.asked_of(replace(council, epoch=2), Standing(1, 99, 1.0), 30).number == 25
    assert gossip.asked_of(council, Standing(1, 99, 1.0), 10).number == 0


def test_those_who_wait_for_each_other_begin_anew_with_the_models_that_they_have() -> None:
    council, told = gossip.due(gossip.anew(begun(), {"aa", "zz"}), SETTINGS, 1.0)
    assert (council.epoch, council.members) == (2, NAMES)
    assert not any(said.newcomer or said.after for said in told.memberships.values())


def test_a_device_that_hangs_while_an_epoch_ends_is_left_out(tmp_path: Path) -> None:
    fleet = GossipSimulation.of(tmp_path, count=12)
    fleet.until(lambda: len(fleet.committed) == 1)
    hung = fleet.device("dev-1")
    assert hung.transport is not None
    events = hung.transport.events
    hung.work = lambda now: events.clear()  # type: ignore[method-assign]
    fleet.add("new-1")
    fleet.until(lambda: any("dev-1" not in allowed for allowed in fleet.allowed))
    fleet.until(lambda: len(fleet.committed) >= 6 and fleet.committed[-1].devices == 4)


def test_nobody_is_accused_of_being_late_by_a_stranger_or_where_all_wait_for_the_next_task(tmp_path: Path) -> None:
    fleet = GossipSimulation.of(tmp_path, count=3)
    fleet.until(lambda: {len(device.done) for device in fleet.devices} >= {5})
    room = fleet.coordinator._council
    assert room is not None
    for number in (3, 5, MAX_NUMBER):
        room.stands("dev-0", Standing(1, number, 1.0, ("dev-1", "dev-2", "dev-3")), fleet.now)
        for device in ("dev-1", "dev-2", "dev-3"):
            room._stood[device] = 1, 5
        assert room._awaited(fleet.now) == set()
    room._stood["dev-1"] = room._stood["dev-2"] = 1, 3
    room.stands("dev-0", Standing(1, 4, 1.0, ("dev-1", "dev-2")), fleet.now)
    # On the ring dev-2 is across.
    assert room._awaited(fleet.now) == {"dev-1"}
