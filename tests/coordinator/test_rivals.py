"""Two coordinators of one fleet on one broker: the second goes, the first says so, and old messages mislead neither."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.rivals import NEWCOMER_S, UNSURE_S, Rivals
from protocol.errors import ConfigurationError
from protocol.messages import CoordinatorState
from tests.coordinator.simulation import Simulation, make_settings

OURS, OTHER = CoordinatorState(3, True, "ours", 11), CoordinatorState(1, True, "other", 22)
COPY = CoordinatorState(3, True, "ours", 33)


def served(now: float = 0.0) -> Rivals:
    """A coordinator that has connected and heard itself."""
    rivals = Rivals(OURS)
    rivals.connected(now)
    assert rivals.hear(OURS, "f", now) == "nothing"
    return rivals


def test_a_newcomer_that_hears_another_goes_and_says_how_to_mend_it() -> None:
    with pytest.raises(ConfigurationError, match=r"run other.*serves fleet 'f'.*stop it, or give"):
        served().hear(OTHER, "f", 1.0)


def test_the_one_that_was_there_first_stays_and_answers_but_not_without_end() -> None:
    rivals = served()
    assert rivals.hear(OTHER, "f", 100.0) == "rival"
    assert rivals.hear(OTHER, "f", 100.1) == "nothing"
    assert rivals.hear(OTHER, "f", 200.0) == "rival"


@pytest.mark.parametrize(
    ("serving_s", "instance", "goes"),
    [(1.0, 99, False), (8.0, 1, True), (5.5, 99, True), (4.5, 99, True), (5.5, 1, False)],
    ids=["it came second", "it was first", "a tie", "a tie", "a tie won"],
)
def test_of_two_newcomers_the_one_that_came_second_goes(serving_s: float, instance: int, goes: bool) -> None:
    said = replace(OTHER, serving_s=serving_s, instance=instance)
    rivals = served()
    if goes:
        with pytest.raises(ConfigurationError):
            rivals.hear(said, "f", 5.0)
    else:
        assert rivals.hear(said, "f", 5.0) == "rival"


def test_one_that_has_long_served_stays_whatever_another_says_of_itself() -> None:
    assert served(-20.0).hear(replace(OTHER, serving_s=1e9), "f", 1.0) == "rival"


def test_of_two_on_copies_of_one_folder_the_second_goes_however_late_it_hears_of_the_first() -> None:
    with pytest.raises(ConfigurationError, match="copy of this state folder"):
        served(-20.0).hear(replace(COPY, serving_s=300.0), "f", 1.0)
    assert served(-300.0).hear(replace(COPY, serving_s=21.0), "f", 1.0) == "rival"


def test_what_we_say_ourselves_is_known_again_whenever_it_was_said() -> None:
    rivals = Rivals(OURS)
    rivals.connected(10.0)
    assert rivals.say(12.5) == replace(OURS, serving_s=2.5)
    assert rivals.hear(rivals.say(11.0), "f", 13.0) == "nothing"
    assert rivals.hear(OTHER, "f", 30.0) == "rival"


def test_what_stood_there_before_our_own_words_is_of_an_earlier_life() -> None:
    rivals = Rivals(OURS)
    rivals.connected(0.0)
    assert rivals.hear(OTHER, "f", 0.1) == "nothing"


@pytest.mark.parametrize("said", [CoordinatorState(2, False, "ours"), CoordinatorState(1, False, "other")])
def test_a_coordinator_that_says_it_is_gone_is_no_rival_but_we_say_that_we_are_here(said: CoordinatorState) -> None:
    assert served().hear(said, "f", 1.0) == "overwritten"


def test_a_will_of_our_own_that_comes_late_is_overwritten_again() -> None:
    rivals = served()
    rivals.connected(50.0)
    assert rivals.hear(replace(OURS, accepting=False), "f", 50.0) == "nothing", "retained, before our own words"
    assert rivals.hear(OURS, "f", 50.0) == "nothing"
    assert rivals.hear(replace(OURS, accepting=False), "f", 90.0) == "overwritten"


@pytest.mark.parametrize("epoch", [2, 3, 4])
def test_a_copy_of_our_own_state_folder_is_a_rival_whatever_its_epoch(epoch: int) -> None:
    with pytest.raises(ConfigurationError, match="it was started from a copy of this state folder"):
        served().hear(replace(COPY, epoch=epoch), "f", 1.0)
    assert served(-100.0).hear(replace(COPY, epoch=epoch), "f", 1.0) == "rival"


@pytest.mark.parametrize("said", [OTHER, COPY, CoordinatorState(2, True, "ours")])
def test_while_another_may_be_alive_nothing_is_asked_or_taken_for_a_moment(said: CoordinatorState) -> None:
    rivals = Rivals(OURS)
    rivals.connected(0.0)
    assert not rivals.unsure(0.0)
    rivals.hear(said, "f", 0.1)
    rivals.hear(OURS, "f", 0.2)
    assert rivals.unsure(0.2)
    assert not rivals.unsure(0.1 + UNSURE_S)


def test_once_the_one_that_stood_there_is_said_to_be_gone_there_is_no_more_doubt() -> None:
    rivals = Rivals(OURS)
    rivals.connected(0.0)
    rivals.hear(CoordinatorState(2, True, "ours", 9), "f", 0.1)
    rivals.hear(OURS, "f", 0.1)
    assert rivals.unsure(0.2)
    assert rivals.hear(CoordinatorState(2, False, "ours", 9), "f", 0.2) == "overwritten"
    assert not rivals.unsure(0.2)


@pytest.mark.parametrize("said", [CoordinatorState(2, False, "ours", 9), replace(OTHER, accepting=False)])
def test_a_predecessor_that_said_it_is_gone_costs_no_time(said: CoordinatorState) -> None:
    rivals = Rivals(OURS)
    rivals.connected(0.0)
    rivals.hear(said, "f", 0.1)
    assert not rivals.unsure(0.1)


def test_one_that_has_long_served_does_not_stop_for_what_stands_there_when_it_reconnects() -> None:
    rivals = served()
    rivals.connected(100.0)
    rivals.hear(OTHER, "f", 100.0)
    assert not rivals.unsure(100.0)


def test_a_coordinator_on_a_copy_of_a_running_ones_folder_goes_before_it_takes_or_folds_anything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Simulation.make(tmp_path / "first", devices=3)
    first.until(lambda: len(first.committed) == 1)
    shutil.copytree(first.folder / "state", tmp_path / "copied" / "state")
    first.until(lambda: first.coordinator._rivals._echoed)
    first.now += 2 * NEWCOMER_S
    copy = Simulation(tmp_path / "copied", make_settings(tmp_path / "copied"), first.bundle, first.broker)
    copy.client, copy.now = "copy", first.now
    copy.start()
    assert copy.store.run == first.store.run
    before = copy.store.accepted(2)

    def served_together() -> None:
        for _ in range(50):
            first.turn()
            copy.turn()

    with pytest.raises(ConfigurationError, match="copy of this state folder"):
        served_together()
    assert copy.store.accepted(2) == before
    assert copy.committed == []
    first.broker.cut("copy")
    first.finish()
    assert [event.devices for event in first.committed] == [3, 3, 3]
    assert first.rejected == []
    assert f"another coordinator serves this fleet through this broker: run={first.store.run}" in caplog.text
    first.store.close()
    copy.store.close()


def test_a_second_coordinator_on_the_broker_of_a_first_ends_and_the_first_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = Simulation.make(tmp_path / "first", devices=2)
    first.until(lambda: first.coordinator._rivals._echoed)
    first.now += 2 * NEWCOMER_S
    second = Simulation.make(tmp_path / "second", devices=0)
    second.kill()
    second.broker, second.client = first.broker, "second"
    second.start()

    def served_together() -> None:
        for _ in range(20):
            second.turn()
            first.turn()

    with pytest.raises(ConfigurationError, match=f"run {first.store.run}"):
        served_together()
    assert f"another coordinator serves this fleet through this broker: run={second.store.run}" in caplog.text
    second.broker.cut("second")
    first.add("dev-2")
    first.finish()
    first.store.close()
    second.store.close()
