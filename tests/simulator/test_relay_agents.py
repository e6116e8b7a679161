"""Real agents that hand sums on along a tree: the very bits of RelaySum in NumPy where all comes in time, and models of
the same use where a fifth is lost, or devices are killed at durable steps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator import gossip as council_table
from edge_agent.gossip.node import Vector
from protocol import failpoints
from protocol.messages import OptimizerSpec
from sparse.gossip import quasi_global, relay
from sparse.gossip.quasi_global import QuasiGlobal
from tests.simulator.gossip_hall import MOMENTUM, SETTINGS, Hall, killer
from tests.simulator.test_gossip_agents import KILLED_AT, QG, RATES, START, UNTIL, finished, leg
from tests.sparse.gossip.test_relay import exchanged

RELAY = replace(SETTINGS, codec="all/float32", algorithm="relay", patience_s=12.0)


def by_rule(hall: Hall, spec: OptimizerSpec) -> dict[str, Vector]:
    """RelaySum in NumPy, with the gradients of these devices."""
    names = list(hall.devices)
    tree = council_table.graph_of_fleet(RELAY, tuple(names), 1)
    states = [relay.begin(near) for near in tree.neighbours]
    models: list[Vector] = [START] * len(names)
    kept: list[Vector] = [np.zeros_like(START)] * len(names)
    rule = QuasiGlobal(spec.momentum, spec.mu or 0.9, spec.nesterov)
    for number in range(1, UNTIL[1] + 1):
        round_ = 1 if number <= UNTIL[0] else 2
        done = [leg(hall, n, round_, number, models[i], kept[i], spec) for i, n in enumerate(names)]
        y = np.stack([each.model for each in done])
        states = exchanged(states, tree, y, number)
        after = [relay.average(state, y[i], len(names), START) for i, state in enumerate(states)]
        if spec.name == "qg":
            kept = [
                quasi_global.refresh(rule, kept[i], models[i], after[i], RATES[round_], 2) for i in range(len(names))
            ]
        else:
            kept = [each.momentum for each in done]
        models = after
    return dict(zip(names, models, strict=True))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vector]:
    hall = Hall(tmp_path_factory.mktemp("undisturbed"), RELAY)
    found = finished(hall)
    hall.end()
    return found


@pytest.mark.parametrize("spec", [MOMENTUM, QG], ids=["local momentum", "quasi-global momentum"])
def test_agents_come_to_the_very_bits_of_relaysum_in_numpy(
    tmp_path: Path, halls: list[Hall], spec: OptimizerSpec
) -> None:
    hall = Hall(tmp_path, RELAY)
    halls.append(hall)
    finished(hall, spec)
    for name, model in by_rule(hall, spec).items():
        node = hall.devices[name].agent._gossiping._talk.node  # type: ignore[union-attr]
        np.testing.assert_array_equal(node.x, model)


def off(found: dict[str, Vector], expected: dict[str, Vector]) -> float:
    """How far the mean of the models is from where it would be, as a share of the way that it came."""
    mean, wanted = (np.mean(list(models.values()), axis=0, dtype=np.float64) for models in (found, expected))
    return float(np.linalg.norm(mean - wanted) / np.linalg.norm(wanted - START))


def test_a_fifth_lost_and_a_fifth_doubled_leave_the_fleet_near_where_it_would_be(
    tmp_path: Path, halls: list[Hall], undisturbed: dict[str, Vector]
) -> None:
    hall = Hall(tmp_path, RELAY, loss=0.2, twice=0.2)
    halls.append(hall)
    found = finished(hall)
    assert hall.broker.lost > 0
    # Of eleven exchanges each lost one costs the models that it held a turn.
    assert off(found, undisturbed) < 0.2


def test_devices_killed_at_durable_steps_go_on_with_the_sums_they_had(
    tmp_path: Path, halls: list[Hall], undisturbed: dict[str, Vector]
) -> None:
    hall, rng = Hall(tmp_path, RELAY), np.random.default_rng(4)
    halls.append(hall)
    failpoints.install(killer(hall, lambda name: name in KILLED_AT and hall.killed < 12 and rng.random() < 0.1))
    found = finished(hall)
    assert hall.killed >= 6
    assert off(found, undisturbed) < 0.1


def test_a_device_that_never_speaks_again_holds_nobody_up_for_longer_than_their_patience(
    tmp_path: Path, halls: list[Hall]
) -> None:
    hall = Hall(tmp_path, RELAY)
    halls.append(hall)
    hall.assign(1, START, UNTIL[0])
    hall.collect(1)
    dead = hall.devices.pop("bb")
    dead.end()
    hall.assign(2, START, UNTIL[1])
    began = hall.now
    hall.collect(2)
    assert hall.now - began < 2 * (UNTIL[1] - UNTIL[0]) * RELAY.patience_s
    assert all("bb" in said.waits_for for said in hall.standings["aa"] if said.number > UNTIL[0])
