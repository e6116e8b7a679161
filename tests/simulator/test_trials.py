"""A simulated device that is killed in its trial: once costs time, twice an operator's word, and nothing is lost."""

from collections.abc import Iterator

import pytest

from protocol import failpoints
from protocol.failpoints import Failpoint
from tests.simulator.faults import HEAL_S, Kill, Schedule
from tests.simulator.world import Outcome, World

DEVICE = "device-0"


@pytest.fixture(autouse=True)
def nothing_stays_installed() -> Iterator[None]:
    yield
    failpoints.install(None)


def simulated(kills: tuple[int, ...], power: bool) -> tuple[Outcome, list[tuple[Failpoint, int]]]:
    """A run of one device, killed at these steps; its failpoints of trials, each with the step that it had come to."""
    faults = tuple(Kill(DEVICE, step, power, 0.1) for step in kills)
    world = World(Schedule(3, devices=1, wanted=1, minimum=1, faults=faults))
    reached: list[tuple[Failpoint, int]] = []

    def note(name: Failpoint) -> None:
        if name.startswith("agent.trial"):
            reached.append((name, world.hosts[DEVICE].steps.taken))

    failpoints.install(note)
    try:
        return world.run(), reached
    finally:
        world.close()


@pytest.mark.parametrize("power", [False, True], ids=["killed", "without power"])
def test_two_deaths_in_a_trial_hold_the_device_back_until_an_operator_says_retry(power: bool) -> None:
    kills: tuple[int, ...] = ()
    outcomes = []
    for _ in range(3):
        outcome, reached = simulated(kills, power)
        assert not outcome.wrong
        outcomes.append((outcome, [name for name, _ in reached]))
        begun = [step for name, step in reached if name == "agent.trial-begun"]
        # Right behind the last trial that was begun.
        kills += (begun[-1] + 1,)
    passed: list[Failpoint] = ["agent.trial-begun", "agent.trial-committing", "agent.trial-committed"]
    assert outcomes[0][1] == passed
    assert outcomes[1][1] == ["agent.trial-begun", *passed]
    assert outcomes[1][0].seconds < HEAL_S
    assert outcomes[2][1] == ["agent.trial-begun", "agent.trial-begun", "agent.trial-failed", *passed]
    assert outcomes[2][0].seconds > HEAL_S
