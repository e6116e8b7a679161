"""Real agents without a hub: the very bits of the rule in NumPy, through loss, doubling, restarts and kills."""

import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coordinator import gossip as council_table
from coordinator.gossip import Rules, fixed
from edge_agent.data import DataSettings, load
from edge_agent.gossip.gossiping import seed_of
from edge_agent.gossip.node import Vector
from edge_agent.momentum import settings_of
from edge_agent.runtimes.numpy_reference import NumpyEngine
from edge_agent.training import LocalTraining, Recipe
from protocol import failpoints
from protocol.messages import GOSSIP, OptimizerSpec
from sparse.codecs import parse_codec
from sparse.gossip import choco, metropolis_hastings, quasi_global
from sparse.gossip.quasi_global import QuasiGlobal
from tests.simulator.gossip_hall import MOMENTUM, SETTINGS, Hall, killer
from tests.tiny import TOTAL

START = (np.arange(1, TOTAL + 1) / 10).astype(np.float32)
# Two rounds of collection.
UNTIL = (6, 11)
# The learning rate of each task: one that falls.
RATES = {1: 0.1, 2: 0.03}
EXACT = replace(SETTINGS, codec="all/float32", gamma=fixed(1.0))
QG = OptimizerSpec(name="qg", momentum=0.9, mu=0.5, nesterov=True)


def finished(hall: Hall, optimizer: OptimizerSpec = MOMENTUM) -> dict[str, Vector]:
    """All devices' own models after two rounds of collection, the second from the mean of the first."""
    hall.assign(1, START, UNTIL[0], optimizer=optimizer)
    first = hall.collect(1)
    mean = np.mean(list(first.values()), axis=0).astype(np.float32)
    hall.assign(2, mean, UNTIL[1], optimizer=optimizer, learning_rate=RATES[2])
    return hall.collect(2)


def leg(hall: Hall, device: str, round_: int, number: int, x: Vector, given: Vector | None, spec: OptimizerSpec):  # type: ignore[no-untyped-def]
    """What a device's training gives."""
    task = hall.task(round_, START, 1, device)
    recipe = Recipe(2, 0, 8, RATES[round_], settings_of(spec), seed_of(task, 1, number))
    data = load(DataSettings(path="shard.npz"), hall.bundle.manifest, hall.folder / device)
    training = LocalTraining(NumpyEngine(hall.bundle), hall.bundle.manifest, data, recipe, x, momentum=given)
    training.advance(1e9)
    return training.result()


def by_rule(hall: Hall, spec: OptimizerSpec, settings: Rules) -> dict[str, Vector]:
    """CHOCO-SGD in NumPy, with the gradients of these devices. All exact sums of a delivered update's float32 too."""
    names = list(hall.devices)
    graph = council_table.graph_of_fleet(settings, tuple(names), 1)
    weights = metropolis_hastings(graph)
    compressor = choco.Compressor(parse_codec(settings.codec), hall.layout.digest, hall.layout.shapes)
    models = dict.fromkeys(names, START)
    states = {name: choco.begin(START) for name in names}
    kept: dict[str, Vector | None] = dict.fromkeys(names, np.zeros(TOTAL, np.float32))
    begun, rounds, rate = dict(models), settings.gossip_rounds, RATES[1]
    rule = QuasiGlobal(spec.momentum, spec.mu or 0.9, spec.nesterov)
    for number in range(1, UNTIL[1] + 1):
        round_ = 1 if number <= UNTIL[0] else 2
        trains, averaged = (number - 1) % rounds == 0, number % rounds == 0
        y = dict(models)
        if trains:
            done = {n: leg(hall, n, round_, number, models[n], kept[n], spec) for n in names}
            # That of the steps which are measured, whatever a later task has.
            begun, rate, y = models, RATES[round_], {n: done[n].model for n in names}
        said = {}
        for name in names:
            seed = zlib.crc32(f"{name}/1/{number}".encode())
            said[name] = choco.say(states[name], y[name], compressor, seed)[1]
        models = dict(models)
        for i, name in enumerate(names):
            near = sorted(names[j] for j in graph.neighbours[i])
            heard = {k: said[other] for k, other in enumerate(near)}
            parts = {k: float(weights[i, names.index(other)]) for k, other in enumerate(near)}
            own = 1.0 - sum(parts.values())
            states[name] = choco.apply(states[name], said[name], own, heard, parts)
            after = choco.move(states[name], y[name], settings.gamma(weights))
            if spec.name == "qg" and averaged:
                before = kept[name]
                assert before is not None
                kept[name] = quasi_global.refresh(rule, before, begun[name], after, rate, 2)
            elif spec.name != "qg" and trains:
                kept[name] = done[name].momentum
            models[name] = after
    return models


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Vector]:
    hall = Hall(tmp_path_factory.mktemp("undisturbed"))
    found = finished(hall)
    hall.end()
    return found


def same(found: dict[str, Vector], expected: dict[str, Vector]) -> bool:
    return {n: v.tobytes() for n, v in found.items()} == {n: v.tobytes() for n, v in expected.items()}


def test_agents_come_to_the_very_bits_of_the_rule_in_numpy(tmp_path: Path, halls: list[Hall]) -> None:
    hall = Hall(tmp_path)
    halls.append(hall)
    found, expected = finished(hall), by_rule(hall, MOMENTUM, SETTINGS)
    for name, model in found.items():
        # What comes by an update is x - model + model, in float32.
        np.testing.assert_allclose(model, expected[name], rtol=0, atol=1e-6)
        node = hall.devices[name].agent._gossiping._talk.node  # type: ignore[union-attr]
        np.testing.assert_array_equal(node.x, expected[name])
    assert all(GOSSIP in hello.skills for hello in hall.hellos)


@pytest.mark.parametrize("faults", [{"loss": 0.01, "twice": 0.01}, {"loss": 0.3, "twice": 0.2}])
def test_what_is_lost_and_doubled_changes_no_bit(
    tmp_path: Path, halls: list[Hall], undisturbed: dict[str, Vector], faults: dict[str, float]
) -> None:
    hall = Hall(tmp_path, **faults)  # type: ignore[arg-type]
    halls.append(hall)
    assert same(finished(hall), undisturbed)
    assert hall.broker.lost > 0


# Of a trial two deaths are meant to end it, and what is trained in a moment has no checkpoint.
OTHERS = ("agent.trial", "agent.checkpoint", "coordinator.")
KILLED_AT = [name for name in failpoints.FAILPOINTS if not name.startswith(OTHERS)]


@pytest.mark.parametrize("names", [KILLED_AT[:5], KILLED_AT[5:8], KILLED_AT[8:]], ids=lambda names: names[0])
def test_devices_killed_at_durable_steps_come_to_the_same_bits(
    tmp_path: Path, halls: list[Hall], undisturbed: dict[str, Vector], names: list[str]
) -> None:
    """Each of these steps kills whoever gets there, now and then, and six times in all."""
    hall, rng = Hall(tmp_path), np.random.default_rng(4)
    halls.append(hall)
    left = dict.fromkeys(names, 6)

    def now(at: failpoints.Failpoint) -> bool:
        # Two deaths in a bundle's trial would end that.
        tried = not at.startswith("agent.gossip") or any(s.number > 1 for of in hall.standings.values() for s in of)
        if not left.get(at) or not tried or rng.random() > 0.5:
            return False
        left[at] -= 1
        return True

    failpoints.install(killer(hall, now))
    assert same(finished(hall), undisturbed)
    assert all(count < 6 for count in left.values()), left
    assert hall.killed > len(names)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(
    "optimizer", [QG, replace(QG, mu=0.9, nesterov=False), MOMENTUM], ids=["Nesterov", "heavy ball", "velocity"]
)
def test_momentum_of_agents_is_that_of_the_rule_however_many_exchanges_follow_a_training(
    tmp_path: Path, halls: list[Hall], optimizer: OptimizerSpec, rounds: int
) -> None:
    settings = replace(SETTINGS, gossip_rounds=rounds)
    hall = Hall(tmp_path, settings)
    halls.append(hall)
    finished(hall, optimizer)
    assert sum(hall.updates["aa", round_].offer.steps for round_ in (1, 2)) == 2 * -(-UNTIL[1] // rounds)
    for name, model in by_rule(hall, optimizer, settings).items():
        node = hall.devices[name].agent._gossiping._talk.node  # type: ignore[union-attr]
        np.testing.assert_array_equal(node.x, model)


def test_without_compression_and_with_gamma_one_agents_average_what_their_steps_give(
    tmp_path: Path, halls: list[Hall]
) -> None:
    """W (x - eta g): identity as the codec of gossip."""
    hall = Hall(tmp_path, EXACT)
    halls.append(hall)
    plain = OptimizerSpec()
    found, names = finished(hall, plain), list(hall.devices)
    weights = metropolis_hastings(council_table.graph_of_fleet(EXACT, tuple(names), 1))
    x = np.stack([START] * len(names))
    for number in range(1, UNTIL[1] + 1):
        round_ = 1 if number <= UNTIL[0] else 2
        steps = [
            leg(hall, n, round_, number, m.astype(np.float32), None, plain).model for n, m in zip(names, x, strict=True)
        ]
        x = weights @ np.stack(steps)
    np.testing.assert_allclose(np.stack([found[name] for name in names]), x, atol=1e-5)
