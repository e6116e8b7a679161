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
DATASETS = ("fashion", "hapt")
TREE = "binary-tree"
# Of CHOCO's Q: a hundredth of the values, or a bit of each.
TOPK, SIGN = "topk:0.01/float16/rice", "all/sign"
_BATCH = 32
_ROUNDS = {"fashion": 1000, "hapt": 1000}
# Of each algorithm the best of a few rates on validation, in 300 rounds with seed 1: see the module's command.
_RATES = {
    "gossip SGD": {"fashion": 0.3, "hapt": 0.1},
    "gossip SGD, local momentum": {"fashion": 0.1, "hapt": 0.04},
    "gossip SGD, quasi-global momentum": {"fashion": 0.1, "hapt": 0.01},
    "CHOCO-SGD": {"fashion": 0.3, "hapt": 0.1},
    "RelaySGD": {"fashion": 0.3, "hapt": 0.3},
    "RelaySGD, local momentum": {"fashion": 0.04, "hapt": 0.04},
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
    found = [
        replace(base, algorithm="gossip SGD"),
        replace(base, algorithm="gossip SGD, local momentum", momentum="local"),
        replace(base, algorithm="gossip SGD, quasi-global momentum", momentum="quasi-global"),
        *(replace(base, algorithm="CHOCO-SGD", exchange="choco", codec=codec) for codec in (TOPK, SIGN)),
        replace(base, algorithm="RelaySGD", exchange="relay", topology=TREE),
        replace(base, algorithm="RelaySGD, local momentum", exchange="relay", topology=TREE, momentum="local"),
    ]
    return [replace(plan, rate=_RATES[plan.algorithm][dataset]) for plan in found]


def with_gamma(plan: Plan) -> Plan:
    """The same with the tuner's gamma, where it needs one."""
    return replace(plan, gamma=tuned(plan.codec, plan.topology).gamma) if plan.exchange == "choco" else plan


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
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    given = problem(chosen.data, SPLIT, chosen.seed, validate=True, devices=DEVICES)
    for plan in plans(chosen.data):
        if plan.algorithm not in (chosen.algorithm or _RATES) or (chosen.codec or plan.codec) != plan.codec:
            continue
        tried = replace(plan, gamma=chosen.gamma) if chosen.gamma else with_gamma(plan)
        for rate in chosen.rate:
            row = run(given, replace(tried, rate=rate, rounds=chosen.rounds or plan.rounds), chosen.seed)
            print(
                f"{row.dataset} seed {chosen.seed} {row.algorithm}, {row.codec}, gamma {tried.gamma:.4f}, "
                f"rate {rate:g}: {row.accuracy_mean:.4f}, worst device {row.accuracy_worst_device:.4f}, "
                f"{row.bytes:,} bytes",
                flush=True,
            )


if __name__ == "__main__":
    main()
