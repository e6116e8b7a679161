"""More devices than may send at once: they are asked later, in order, and nobody is dropped or starves."""

from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.turns import LONGEST_S, SHORTEST_S, Turns
from protocol.messages import BlobRef, Chunk, Later, Need, Offer
from tests.coordinator.simulation import FakeAgent, Simulation


def fleet_of(folder: Path, devices: int, uploads: int, parameters: int = 20) -> Simulation:
    """One round of all of them, of whom so many may send at once."""
    fleet = Simulation.make(folder, devices=0, parameters=parameters, count=1)
    fleet.kill()
    limits = replace(fleet.settings.limits, uploads=uploads, disk_mib=256)
    rounds = replace(fleet.settings.rounds, devices=devices, deadline_s=600.0)
    fleet.settings = replace(fleet.settings, limits=limits, rounds=rounds)
    fleet.start()
    for index in range(devices):
        fleet.add(f"dev-{index:03}")
    return fleet


def needed(agent: FakeAgent) -> list[Need]:
    """What it was asked for of its updates."""
    return [body for body in agent.heard if isinstance(body, Need)]


def test_so_many_send_and_the_others_wait_in_the_order_in_which_they_came() -> None:
    turns = Turns(2)
    assert [turns.take(device) for device in "abcde"] == [True, True, False, False, False]
    assert not turns.take("c"), "who asks again keeps its place"
    turns.end("b")
    turns.end("d")
    assert list(turns.next(1.0)) == ["c"]
    assert [turns.has(device) for device in "abcde"] == [True, False, True, False, False]
    turns.pass_on("a")
    assert list(turns.next(2.0)) == ["e"]
    turns.end("c")
    assert list(turns.next(3.0)) == ["a"], "behind the others, and not for ever"


def test_a_newcomer_does_not_take_the_turn_of_one_who_waits() -> None:
    turns = Turns(1)
    assert turns.take("a")
    assert not turns.take("b")
    turns.end("a")
    assert not turns.take("c")
    assert list(turns.next(1.0)) == ["b"]


def test_how_long_one_waits_follows_from_how_many_are_ahead_and_how_long_they_take() -> None:
    turns = Turns(1)
    for device in range(1000):
        turns.take(f"{device}")
    for second in range(100):
        turns.end(f"{second}")
        assert list(turns.next(10.0 * second)) == [f"{second + 1}"]
    assert turns.wait_s("101") == pytest.approx(20.0, rel=0.1)
    assert turns.wait_s("110") == pytest.approx(200.0, rel=0.1)
    assert turns.wait_s("999") == LONGEST_S
    assert SHORTEST_S <= turns.wait_s("101") <= LONGEST_S


def test_a_fleet_that_offers_all_at_once_is_served_some_at_a_time_and_nobody_is_dropped(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, devices=200, uploads=8)
    most = 0

    def finished() -> bool:
        nonlocal most
        turns = fleet.coordinator._uploads._turns
        most = max(most, len(turns._sending))
        return fleet.coordinator.finished

    fleet.until(finished)
    assert most == 8
    assert [round_.devices for round_ in fleet.committed] == [200]
    told = [agent for agent in fleet.agents.values() if any(isinstance(body, Later) for body in agent.heard)]
    assert len(told) >= 190
    assert all(len(needed(agent)) == 1 for agent in fleet.agents.values()), "asked once, when it was its turn"
    fleet.until(lambda: all(len(agent.settled) == 1 for agent in fleet.agents.values()))
    assert not fleet.rejected
    fleet.store.close()


def test_devices_that_offer_and_fall_silent_keep_nobody_waiting_for_long(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, devices=12, uploads=2)
    silent = [fleet.agents[f"dev-{index:03}"] for index in range(3)]
    for agent in silent:
        agent.outbox_answers = False
    began = fleet.now
    others = [agent for agent in fleet.agents.values() if agent not in silent]
    fleet.until(lambda: all(agent.settled for agent in others))
    assert fleet.now - began < 60.0
    for agent in silent:
        agent.outbox_answers = True
    fleet.finish()
    assert [round_.devices for round_ in fleet.committed] == [12]
    fleet.store.close()


def test_who_passes_its_turn_on_keeps_what_it_sent(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, devices=3, uploads=1, parameters=400_000)
    first = fleet.agents["dev-000"]
    fleet.until(lambda: first.chunks_sent >= 4)
    first.outbox_answers = False
    fleet.until(lambda: all(agent.settled for agent in fleet.agents.values() if agent is not first))
    sent = first.chunks_sent
    first.outbox_answers = True
    fleet.finish()
    chunks = BlobRef(bytes(32), 400_000 * 4).chunks
    assert first.chunks_sent <= chunks + 1 + 8
    assert first.chunks_sent > sent
    fleet.store.close()


def test_a_disk_that_is_full_answers_later(tmp_path: Path) -> None:
    fleet = Simulation.make(tmp_path, devices=3, count=1)
    fleet.store.updates.limit_bytes = 10
    agent = fleet.agents["dev-0"]
    fleet.until(lambda: any(isinstance(body, Later) for body in agent.heard))
    fleet.store.updates.limit_bytes = 1 << 20
    fleet.finish()
    assert [round_.devices for round_ in fleet.committed] == [3]
    fleet.store.close()


def test_chunks_and_offers_of_those_who_wait_change_nothing(tmp_path: Path) -> None:
    fleet = fleet_of(tmp_path, devices=3, uploads=1, parameters=300_000)
    fleet.until(lambda: any(isinstance(body, Later) for agent in fleet.agents.values() for body in agent.heard))
    waiting = next(a for a in fleet.agents.values() if any(isinstance(body, Later) for body in a.heard))
    ((offer, payload),) = waiting.outbox.values()
    assert isinstance(offer, Offer)
    waiting.send(offer)
    waiting.send(Chunk(offer.blob.digest, 0, payload[: 64 * 1024]), "up/blob")
    fleet.finish()
    assert [round_.devices for round_ in fleet.committed] == [3]
    fleet.store.close()
