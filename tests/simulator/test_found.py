"""What the simulator has found in the daemons, each with the least that shows it."""

import pytest

from tests.simulator.disk import Trouble
from tests.simulator.faults import BitFlip, DiskTrouble, Fault, Schedule
from tests.simulator.world import simulate


def check(*faults: Fault) -> None:
    outcome = simulate(Schedule(0, large=True, rounds=2, faults=faults))
    assert not outcome.wrong


@pytest.mark.parametrize("machine", ["device-0", "coordinator"])
@pytest.mark.parametrize("trouble", ["full", "failing"])
def test_a_disk_in_trouble_for_a_moment_of_a_transfer_is_waited_for(machine: str, trouble: Trouble) -> None:
    """An agent took note of a chunk that its full disk had not taken."""
    for tenths in range(1, 14, 2):
        check(DiskTrouble(machine, tenths / 10, 0.1, trouble))


def test_a_model_that_is_altered_while_it_is_trained_ends_the_task_and_nothing_else() -> None:
    """Packing an update from it was an internal fault of the agent."""
    for which in (0.1, 0.5, 0.9):
        check(*(BitFlip("device-0", hundredths / 100, "blobs", which) for hundredths in range(40, 140, 10)))
