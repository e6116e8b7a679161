"""Whatever dies while a personal head is kept, the device has the one before or this one, and the model of that one."""

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from edge_agent.personal.shelf import FILE, FOLDER, keep, kept
from tests.agent.personal.test_shelf import personal, same
from tests.simulator.disk import Platter, SimulatedDisk
from tests.simulator.life import Killed, Life, Steps

STATE = Path("/state")
OLD, NEW = personal(1.0, "model-1.onnx"), personal(2.0, "model-2.onnx")


def killed_at(step: int, *, power: bool, seed: int) -> tuple[SimulatedDisk, bool]:
    """A disk on which NEW is written over OLD by a process that dies at a step, and whether it did."""
    platter = Platter(Random(seed))
    keep(STATE, OLD, b"one", SimulatedDisk(platter, Life(Steps(lambda what: None))))
    died = False
    try:
        keep(STATE, NEW, b"two", SimulatedDisk(platter, Life(Steps(lambda what: None, [step]))))
    except Killed:
        died = True
    if power:
        platter.cut_power()
    return SimulatedDisk(platter, Life(Steps(lambda what: None))), died


@pytest.mark.parametrize("power", [False, True])
def test_a_kill_at_any_step_leaves_a_whole_head_and_its_model(power: bool) -> None:
    found_old = found_new = 0
    for seed in range(5 if power else 1):
        step, died = 1, True
        while died:
            disk, died = killed_at(step, power=power, seed=seed)
            found = kept(STATE, disk)
            assert found is not None
            new = same(found, NEW)
            assert new or same(found, OLD)
            found_old, found_new = found_old + (not new), found_new + new
            assert found.origin.model is not None
            assert disk.read(STATE / FOLDER / found.origin.model) == (b"two" if new else b"one")
            # And the next one is kept as ever, and sweeps.
            keep(STATE, replace(NEW, origin=replace(NEW.origin, model=None)), None, disk)
            assert disk.names(STATE / FOLDER) == (FILE,)
            step += 1
    assert found_old >= 3
    assert found_new >= 1
