"""The algorithms of a fleet without a hub, on a ring of 16 and on a tree: whole models, compressed differences, sums.

    python -m benchmarks.algorithms --only gossip --json --seeds 3
    python -m benchmarks.algorithm_gossip --data fashion --rate 0.05 0.1 0.2

The second command is how the settings below were chosen: on examples or people taken from the training part.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from benchmarks import gossip_fleet
from benchmarks.algorithm_rows import Row, problem
from benchmarks.gossip_fleet import Plan, run
from sparse.codecs import parse_codec
from sparse.codecs.header import LAYOUT_BYTES
from sparse.gossip import Tuned, metropolis_hastings, parse_topology, tune
from sparse.gossip.choco import Compressor

DEVICES = 16
SPLIT = "dirichlet 0.1"
TREE = "binary-tree"
# Of CHOCO's Q: a hundredth of the values, or a bit of each.
TOPK, SIGN = "topk:0.01/float16/rice", "all/sign"
# Of a hundredth, as often as a twentieth of exact gossip's bytes allows.
_EXCHANGES = 5
_BATCH = 32
_ROUNDS = {"fashion": 600, "hapt": 300}
DATASETS = tuple(_ROUNDS)
# Of each algorithm the best of a few rates on validation, with seed 1: docs/gossip.md has them.
_RATES = {
    "gossip SGD": {"fashion": 0.6, "hapt": 0.1},
    "gossip SGD, local momentum": {"fashion": 0.2, "hapt": 0.04},
    "gossip SGD, quasi-global momentum": {"fashion": 0.2, "hapt": 0.01},
    "CHOCO-SGD": {"fashion": 0.3, "hapt": 0.1},
    f"CHOCO-SGD, {_EXCHANGES} exchanges": {"fashion": 0.1, "hapt": 0.1},
    "RelaySGD": {"fashion": 1.0, "hapt": 0.3},
    "RelaySGD, local momentum": {"fashion": 0.1, "hapt": 0.04},
}


def rows(dataset: str, seeds: Sequence[int], quick: bool) -> Iterator[Row]:
    """A row for each algorithm and seed; none of a data set that this part is not about."""
    if dataset not in DATASETS:
        return
    for seed in seeds:
        given = problem(dataset, SPLIT, seed, quick=quick, devices=DEVICES)
        for plan in plans(dataset):
            yield run(given, gossip_fleet.quick(plan) if quick else with_gamma(plan), seed)


def plans(dataset: str) -> list[Plan]:
    """What is compared on a data set: each takes as many steps, one a round, at its own rate."""
    base = Plan("", "ring", _ROUNDS[dataset], _BATCH, 0.0)
    choco, relay = replace(base, exchange="choco", gamma=0.0), replace(base, exchange="relay", topology=TREE)
    found = [
        replace(base, algorithm="gossip SGD"),
        replace(base, algorithm="gossip SGD, local momentum", momentum="local"),
        replace(base, algorithm="gossip SGD, quasi-global momentum", momentum="quasi-global"),
        replace(choco, algorithm=f"CHOCO-SGD, {_EXCHANGES} exchanges", codec=TOPK, exchanges=_EXCHANGES),
        replace(choco, algorithm="CHOCO-SGD", codec=SIGN),
        replace(relay, algorithm="RelaySGD"),
        replace(relay, algorithm="RelaySGD, local momentum", momentum="local"),
    ]
    return [replace(plan, rate=_RATES[plan.algorithm][dataset]) for plan in found]


def with_gamma(plan: Plan) -> Plan:
    """The same with the tuner's gamma, where it needs one and none was chosen."""
    if plan.exchange != "choco" or plan.gamma:
        return plan
    return replace(plan, gamma=tuned(plan.codec, plan.topology).gamma)


@cache
def tuned(codec: str, topology: str, rounds: int = 300, d: int = 2000) -> Tuned:
    """By the authors' tuner, on vectors of one tensor: what a codec keeps of noise hardly depends on its length."""
    weights = metropolis_hastings(parse_topology(topology, DEVICES, np.random.default_rng(0)))
    return tune(weights, Compressor(parse_codec(codec), bytes(LAYOUT_BYTES)), d, np.random.default_rng(0), rounds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Rates of gossip's algorithms, tried on a part of the training data.")
    parser.add_argument("--data", choices=DATASETS, required=True)
    parser.add_argument("--rate", type=float, nargs="+", required=True, help="for example 0.05 0.1 0.2")
    parser.add_argument("--algorithm", action="append", choices=sorted(_RATES), help="again for more (default: all)")
    parser.add_argument("--gamma", type=float, help="of CHOCO, instead of the tuner's")
    parser.add_argument("--codec", help="of CHOCO, only this one, for example all/sign")
    parser.add_argument("--rounds", type=int, help="default: as many as are measured")
    parser.add_argument("--exchanges", type=int, help="of gossip after each step")
    parser.add_argument("--mu", type=float, default=0.9, help="of quasi-global momentum")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    given = problem(chosen.data, SPLIT, chosen.seed, validate=True, devices=DEVICES)
    for plan in plans(chosen.data):
        if plan.algorithm not in (chosen.algorithm or _RATES) or (chosen.codec or plan.codec) != plan.codec:
            continue
        tried = with_gamma(replace(plan, gamma=chosen.gamma or plan.gamma, mu=chosen.mu))
        tried = replace(tried, rounds=chosen.rounds or plan.rounds, exchanges=chosen.exchanges or plan.exchanges)
        for rate in chosen.rate:
            row = run(given, replace(tried, rate=rate), chosen.seed)
            print(
                f"{row.dataset}, {row.split}, seed {chosen.seed} {row.algorithm}, {row.codec}, "
                f"gamma {tried.gamma:.4f}, rate {rate:g}: {row.accuracy_mean:.4f}, own models {row.own_mean:.4f}, "
                f"worst {row.accuracy_worst_device:.4f}, {row.bytes:,} bytes in {row.rounds} rounds",
                flush=True,
            )


if __name__ == "__main__":
    main()
