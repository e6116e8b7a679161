"""A whole fleet that hands sums on along a tree, in one process: the council's trees, devices with their stores, and
links that lose a fifth of what devices say to each other."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from coordinator.gossip import Rules, graph_of_fleet
from protocol.transport import Incoming
from tests.simulator.test_gossip_fleet import TOPICS, Device, Fleet

NAMES = ("aa", "bb", "cc", "dd", "ee")
RULES = Rules(codec="all/float32", first=len(NAMES), minimum=3, dead_after_s=60.0, algorithm="relay", patience_s=8.0)
# An exchange takes a tenth of what is off away, later where the tree is long.
ENDED, NEAR = 80, 2e-2


class BadLinks:
    """Of what devices say to each other a share is lost."""

    def __init__(self, share: float) -> None:
        self.share, self.rng, self.lost = share, np.random.default_rng(7), 0

    def __call__(self, message: Incoming) -> bool:
        lost = TOPICS.parse(message.topic) is None and self.rng.random() < self.share
        self.lost += lost
        return lost


def begun(folder: Path, share: float) -> tuple[Fleet, BadLinks]:
    fleet, links = Fleet(folder, RULES), BadLinks(share)
    for name in NAMES:
        fleet.start(name)
        fleet.devices[name].loses = links
    return fleet, links


@pytest.fixture
def bad(tmp_path: Path) -> Iterator[Fleet]:
    fleet, _ = begun(tmp_path, 0.2)
    yield fleet
    for name in list(fleet.devices):
        fleet.end(name)


def off(devices: list[Device], epoch: int, number: int) -> float:
    """How far the mean of the models is from that of the places that the devices are drawn to."""
    models = [[c.after for c in d.done if c.epoch == epoch and c.number <= number][-1] for d in devices]
    return float(np.abs(np.mean(models, axis=0) - np.mean([d.pull for d in devices], axis=0)).max())


def test_a_fifth_lost_leaves_the_fleet_at_the_mean_of_what_each_would_learn_alone(tmp_path: Path) -> None:
    fleet, links = begun(tmp_path, 0.2)
    assert links.lost == 0
    fleet.run(1, ENDED)
    assert links.lost > ENDED
    assert off(list(fleet.devices.values()), 1, ENDED) < NEAR
    for name in list(fleet.devices):
        fleet.end(name)


def test_neighbours_are_those_of_a_tree_and_each_is_told_what_lies_behind(bad: Fleet) -> None:
    bad.run(1, 1)
    told = bad.council.told
    assert sum(len(said.neighbours) for said in told.values()) == 2 * (len(NAMES) - 1)
    assert {said.devices for said in told.values()} == {len(NAMES)}
    assert graph_of_fleet(RULES, NAMES, 1).is_tree


def test_a_device_that_is_restarted_goes_on_with_the_sums_it_had(bad: Fleet) -> None:
    bad.run(1, 30)
    sums, done, links = bad.devices["bb"].talk.node.sums, bad.devices["bb"].done, bad.devices["bb"].loses
    bad.end("bb")
    bad.start("bb", boot=2)
    bad.devices["bb"].loses = links
    found = bad.devices["bb"].talk.node.sums
    assert sums is not None
    assert found is not None
    # Which step it is kept with is a matter of who spoke last.
    assert set(found.heard) == set(sums.heard)
    assert sums.number - 1 <= found.number <= sums.number
    bad.devices["bb"].done += done
    bad.run(1, ENDED)
    assert off(list(bad.devices.values()), 1, ENDED) < NEAR


def test_a_device_that_is_lost_for_good_is_left_out_of_the_next_tree(bad: Fleet) -> None:
    bad.run(1, 20)
    bad.end("bb")
    bad.run(2, ENDED)
    assert bad.council.members == ("aa", "cc", "dd", "ee")
    assert off(list(bad.devices.values()), 2, ENDED) < NEAR


def test_a_device_that_joins_is_in_the_next_tree_and_begins_with_what_its_neighbours_began_with(bad: Fleet) -> None:
    bad.run(1, 20)
    bad.start("ff")
    bad.run(2, ENDED)
    assert bad.council.members == (*NAMES, "ff")
    first, near = bad.devices["ff"].done[0].before, bad.council.told["ff"].weights
    began = np.mean([next(c.before for c in bad.devices[d].done if c.epoch == 2) for d in near], axis=0)
    np.testing.assert_allclose(first, began, atol=1e-6)
    assert off(list(bad.devices.values()), 2, ENDED) < NEAR
