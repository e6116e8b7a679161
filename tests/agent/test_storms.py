"""An agent among thousands: it spreads its greetings as the coordinator says, and waits when it is asked to."""

import pytest

from protocol.messages import Hello, Later, Offer
from tests.agent.test_agent import DEVICE, ZEROS, Fleet
from tests.agent.test_agent import fleet as one_agent

fleet = one_agent


def greeted_after(fleet: Fleet) -> float:
    """Seconds until the next hello."""
    before, began = len(fleet.coordinator.of(Hello)), fleet.now
    fleet.until(lambda: len(fleet.coordinator.of(Hello)) > before, turns=2000)
    return fleet.now - began


def test_a_broker_that_returns_is_greeted_at_a_time_left_to_chance(fleet: Fleet) -> None:
    fleet.coordinator.spread_s = 50.0
    fleet.coordinator.announce()
    fleet.until(lambda: bool(fleet.coordinator.of(Hello)))
    after = []
    for _ in range(8):
        fleet.broker.cut(DEVICE)
        fleet.turn()
        fleet.broker.restore(DEVICE)
        after.append(greeted_after(fleet))
    assert max(after) <= 52.0
    assert max(after) - min(after) > 10.0


def test_a_coordinator_that_returns_is_greeted_as_spread_as_it_says(fleet: Fleet) -> None:
    fleet.coordinator.announce()
    fleet.until(lambda: bool(fleet.coordinator.of(Hello)))
    after = []
    for epoch in range(2, 10):
        fleet.coordinator.epoch, fleet.coordinator.spread_s = epoch, 50.0
        fleet.coordinator.announce()
        after.append(greeted_after(fleet))
    assert max(after) <= 52.0
    assert max(after) - min(after) > 10.0


@pytest.mark.parametrize("spread_s", [None, 0.05])
def test_a_small_fleet_waits_for_nobody(fleet: Fleet, spread_s: float | None) -> None:
    fleet.coordinator.spread_s = spread_s
    fleet.coordinator.announce()
    fleet.until(lambda: bool(fleet.coordinator.of(Hello)))
    fleet.broker.cut(DEVICE)
    fleet.turn()
    fleet.broker.restore(DEVICE)
    assert greeted_after(fleet) <= 1.1


def test_an_update_that_is_to_come_later_is_offered_again_no_sooner_and_sent_when_it_is_needed(fleet: Fleet) -> None:
    fleet.coordinator.deaf_to = (Offer,)
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.of(Offer)))
    offer = fleet.coordinator.of(Offer)[0]
    assert isinstance(offer, Offer)
    fleet.coordinator.say(Later(offer.blob.digest, 100.0))
    fleet.turn()
    heard, began = len(fleet.coordinator.of(Offer)), fleet.now
    fleet.until(lambda: len(fleet.coordinator.of(Offer)) > heard, turns=2000)
    assert 98.0 <= fleet.now - began <= 155.0
    fleet.coordinator.deaf_to = ()
    fleet.until(lambda: not fleet.store.outbox())


def test_later_of_another_blob_changes_nothing(fleet: Fleet) -> None:
    fleet.coordinator.deaf_to = (Offer,)
    fleet.coordinator.say(fleet.coordinator.task(1, ZEROS))
    fleet.until(lambda: bool(fleet.coordinator.of(Offer)))
    fleet.coordinator.say(Later(bytes(32), 3600.0))
    fleet.turn()
    heard, began = len(fleet.coordinator.of(Offer)), fleet.now
    fleet.until(lambda: len(fleet.coordinator.of(Offer)) > heard)
    assert fleet.now - began < 10.0
