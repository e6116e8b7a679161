"""A fleet without a hub in one process: real engines and codecs, one step a round, every message delivered."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal

import numpy as np

from benchmarks.algorithm_rows import Problem, Row
from edge_agent.data import Dataset
from edge_agent.runtimes.engine import Batch, Vector
from protocol.layout import layout_of
from protocol.manifest import FULL
from sparse.codecs import parse_codec
from sparse.gossip import Graph, QuasiGlobal, Relay, metropolis_hastings, parse_topology, quasi_global, relay
from sparse.gossip import choco as compressed
from sparse.gossip.choco import Choco, Compressor
from sparse.gossip.exact import mix
from sparse.gossip.weights import Weights

Momentum = Literal["none", "local", "quasi-global"]
Exchange = Literal["exact", "choco", "relay"]
WEIGHT_DECAY = 1e-4


@dataclass(frozen=True, slots=True)
class Plan:
    """One algorithm. The rate falls to a tenth at half of the rounds and again at three quarters.

    codec: of CHOCO's differences; the others send models as they are. gamma: of CHOCO. momentum is 0.9, Nesterov's;
    mu: of quasi-global momentum. exchanges: after each step; the later ones are of gossip alone.
    """

    algorithm: str
    topology: str
    rounds: int
    batch: int
    rate: float
    momentum: Momentum = "none"
    exchange: Exchange = "exact"
    codec: str = "all/float32"
    gamma: float = 1.0
    mu: float = 0.9
    exchanges: int = 1

    def rate_at(self, number: int) -> float:
        return self.rate * 0.1 ** ((number >= self.rounds // 2) + (number >= self.rounds * 3 // 4))


@dataclass(frozen=True, slots=True)
class _Exchanged:
    """Models after an exchange, and the bytes that all devices sent and received in it."""

    models: Sequence[Vector]
    bytes: int


class _Exact:
    """Models whole, mixed by weights."""

    def __init__(self, graph: Graph) -> None:
        self._near, self._own = _rows(metropolis_hastings(graph))

    def exchange(self, ys: Sequence[Vector], number: int) -> _Exchanged:
        near = self._near
        models = [mix(y, self._own[i], {j: ys[j] for j in near[i]}, near[i]) for i, y in enumerate(ys)]
        return _Exchanged(models, sum(y.nbytes * (1 + len(near[i])) for i, y in enumerate(ys)))


class _Choco:
    """Differences under a codec, published once for all neighbours."""

    def __init__(self, graph: Graph, start: Vector, q: Compressor, gamma: float) -> None:
        self._near, self._own = _rows(metropolis_hastings(graph))
        self._q, self._gamma = q, gamma
        self._states: list[Choco] = [compressed.begin(start) for _ in range(len(graph))]

    def exchange(self, ys: Sequence[Vector], number: int) -> _Exchanged:
        n, near = len(ys), self._near
        said = [compressed.say(self._states[i], ys[i], self._q, number * n + i) for i in range(n)]
        models = []
        for i in range(n):
            heard = {j: said[j][1] for j in near[i]}
            self._states[i] = compressed.apply(self._states[i], said[i][1], self._own[i], heard, near[i])
            models.append(compressed.move(self._states[i], ys[i], self._gamma))
        return _Exchanged(models, sum(len(said[i][0]) * (1 + len(near[i])) for i in range(n)))


class _Relayed:
    """Sums along a tree."""

    def __init__(self, tree: Graph, start: Vector) -> None:
        assert tree.is_tree, "RelaySum needs a tree"
        self._tree, self._start = tree, start
        self._states: list[Relay] = [relay.begin(near) for near in tree.neighbours]

    def exchange(self, ys: Sequence[Vector], number: int) -> _Exchanged:
        sent = [relay.messages(state, ys[i], number) for i, state in enumerate(self._states)]
        for i, near in enumerate(self._tree.neighbours):
            for j in near:
                self._states[i] = relay.receive(self._states[i], j, sent[j][i])
        models = [relay.average(state, ys[i], len(ys), self._start) for i, state in enumerate(self._states)]
        return _Exchanged(models, sum(2 * m.total.nbytes for each in sent for m in each.values()))


def run(given: Problem, plan: Plan, seed: int) -> Row:
    """Trains the fleet; the row's accuracies are of the averaged model and of the worst device's own."""
    models, sent = train(given, plan, seed)
    average: Vector = np.asarray(np.mean(models, axis=0, dtype=np.float64), dtype=np.float32)
    own = [given.accuracy(model) for model in models]
    return Row(
        dataset=given.dataset,
        split=given.split,
        topology=plan.topology,
        algorithm=plan.algorithm,
        codec=plan.codec,
        rounds=plan.rounds,
        bytes=round(sent / len(models)),
        accuracy_mean=round(given.accuracy(average), 4),
        accuracy_sd=0.0,
        accuracy_worst_device=round(min(own), 4),
        own_mean=round(float(np.mean(own)), 4),
    )


def train(given: Problem, plan: Plan, seed: int) -> tuple[list[Vector], int]:
    """Every device's model at the end, float32[total], and the bytes of all messages, sent and received.

    A run that diverges ends with the last models that were finite.
    """
    assert given.manifest.parameters == given.manifest.total, "gossip of running statistics is not meant here"
    n, rule = len(given.fleet), QuasiGlobal(mu=plan.mu, nesterov=True)
    exchange = _exchange(given, plan, parse_topology(plan.topology, n, np.random.default_rng(seed)))
    batches = [_batches(data, plan.batch, (seed, i)) for i, data in enumerate(given.fleet.values())]
    models = [given.initial.copy() for _ in range(n)]
    momenta = [np.zeros_like(given.initial) for _ in range(n)]
    sent = 0
    for number in range(plan.rounds):
        rate, ys = plan.rate_at(number), []
        for i, x in enumerate(models):
            gradient = given.engine.step(x, next(batches[i]), 0).gradient + np.float32(WEIGHT_DECAY) * x
            momenta[i], y = _step(plan.momentum, rule, momenta[i], x, gradient, rate)
            ys.append(y)
        if not all(np.isfinite(y).all() for y in ys):
            break
        for again in range(plan.exchanges):
            exchanged = exchange.exchange(ys, number * plan.exchanges + again)
            ys, sent = list(exchanged.models), sent + exchanged.bytes
        if plan.momentum == "quasi-global":
            pairs = zip(momenta, models, ys, strict=True)
            momenta = [quasi_global.refresh(rule, m, before, after, rate) for m, before, after in pairs]
        models = ys
    return models, sent


def _step(
    momentum: Momentum, rule: QuasiGlobal, held: Vector, x: Vector, gradient: Vector, rate: float
) -> tuple[Vector, Vector]:
    """The momentum as it is after the step, and y."""
    if momentum == "none":
        return held, (x - np.float32(rate) * gradient).astype(np.float32)
    if momentum == "quasi-global":
        return held, quasi_global.step(rule, held, x, gradient, rate)
    with np.errstate(over="ignore", invalid="ignore"):
        held = (rule.beta * held + gradient).astype(np.float32)
        return held, (x - rate * (gradient + rule.beta * held)).astype(np.float32)


def _exchange(given: Problem, plan: Plan, graph: Graph) -> _Exact | _Choco | _Relayed:
    if plan.exchange == "exact":
        return _Exact(graph)
    if plan.exchange == "relay":
        return _Relayed(graph, given.initial)
    return _Choco(graph, given.initial, _compressor(given, plan.codec), plan.gamma)


def _compressor(given: Problem, codec: str) -> Compressor:
    layout = layout_of(given.manifest, FULL)
    return Compressor(parse_codec(codec), layout.digest, layout.shapes)


def _rows(weights: Weights) -> tuple[list[Mapping[int, float]], list[float]]:
    """Each device's neighbours with their weights, and its own weight."""
    near = [{j: float(w) for j, w in enumerate(row) if w > 0 and j != i} for i, row in enumerate(weights)]
    return list(near), [float(w) for w in np.diag(weights)]


def _batches(data: Dataset, size: int, seed: tuple[int, int]) -> Iterator[Batch]:
    """Passes without end over a device's own examples, each in a new order; the data is never dealt anew."""
    size = min(size, len(data))
    for epoch in count():
        order = np.random.default_rng([*seed, epoch]).permutation(len(data))
        for start in range(0, len(data) - size + 1, size):
            at = np.sort(order[start : start + size])
            yield Batch((data.inputs[0][at],), (data.targets[0][at],))


def quick(plan: Plan) -> Plan:
    """A few rounds of it, with a gamma that needs no trial."""
    return replace(plan, rounds=8, gamma=0.05, exchanges=min(plan.exchanges, 2))
