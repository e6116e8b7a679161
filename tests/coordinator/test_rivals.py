"""Two coordinators of one fleet on one broker: the second goes, the first says so, and old messages mislead neither."""

from pathlib import Path

import pytest

from coordinator.rivals import NEWCOMER_S, Rivals
from protocol.errors import ConfigurationError
from protocol.messages import CoordinatorState
from tests.coordinator.simulation import Simulation

OURS, OTHER = CoordinatorState(3, True, "ours"), CoordinatorState(1, True, "other")


def served(now: float = 0.0) -> Rivals:
    """A coordinator that has connected and heard itself."""
    rivals = Rivals(OURS)
    rivals.connected(now)
    assert not rivals.hear(OURS, "f", now)
    return rivals


def test_a_newcomer_that_hears_another_goes_and_says_how_to_mend_it() -> None:
    with pytest.raises(ConfigurationError, match=r"run other.*serves fleet 'f'.*stop it, or give"):
        served().hear(OTHER, "f", 1.0)


def test_the_one_that_was_there_first_stays_and_answers_but_not_without_end() -> None:
    rivals = served()
    assert rivals.hear(OTHER, "f", 100.0)
    assert not rivals.hear(OTHER, "f", 100.1)
    assert rivals.hear(OTHER, "f", 200.0)


def test_what_stood_there_before_our_own_words_is_of_an_earlier_life() -> None:
    rivals = Rivals(OURS)
    rivals.connected(0.0)
    assert not rivals.hear(OTHER, "f", 0.1)


@pytest.mark.parametrize("said", [CoordinatorState(2, False, "ours"), CoordinatorState(1, False, "other")])
def test_a_coordinator_that_says_it_is_gone_is_no_rival(said: CoordinatorState) -> None:
    assert not served().hear(said, "f", 1.0)


def test_a_copy_of_our_own_state_folder_is_a_rival_too() -> None:
    with pytest.raises(ConfigurationError):
        served().hear(CoordinatorState(4, True, "ours"), "f", 1.0)


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
