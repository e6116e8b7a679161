"""The algorithms of a fleet with a hub: local SGD by schedules of local steps, and momentum on the device.

    python -m benchmarks.algorithm_hub --data fashion --split "dirichlet 0.1" --algorithm quasi-global --rate 0.05 0.1

tries learning rates, on a part of the training people or examples: what the settings below were chosen by.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.algorithm_rows import DEVICES, SPLITS, Row, problem
from benchmarks.hub_fleet import Plan, run
from coordinator.local_steps import BudgetSettings, StepRule
from edge_agent.runtimes.optimizers import OptimizerSettings

_BATCH = 32
_NO_BUDGET = BudgetSettings()
# No algorithm takes more rounds than that.
_ROUNDS = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a data set, chosen on people or examples taken from the training part. steps: of a device in the whole run.
    interval: the H of local SGD. Learning rates: of SGD without momentum, with a device's own, with the fleet's."""

    steps: int
    interval: int
    rate: float
    momentum_rate: float
    global_rate: float


SETTINGS = {
    # Half of the largest rates that were stable there: on all 21 people SGD with H = 8 diverges at 0.2.
    "hapt": Settings(240, 8, 0.1, 0.01, 0.05),
    "fashion": Settings(240, 8, 0.3, 0.1, 0.2),
    "fsdd": Settings(240, 8, 0.2, 0.05, 0.1),
}


def rows(dataset: str, seeds: Sequence[int], quick: bool) -> Iterator[Row]:
    """A row for each algorithm, split and seed."""
    for seed in seeds:
        for split in SPLITS[dataset]:
            given = problem(dataset, split, seed, quick=quick)
            price = 0
            for plan in plans(SETTINGS[dataset], quick=quick):
                row = run(given, plan, seed)
                price = price or row.bytes // row.rounds
                yield row
            yield run(given, adaptive(SETTINGS[dataset], price * DEVICES[dataset], quick=quick), seed)


def plans(settings: Settings, *, quick: bool) -> tuple[Plan, ...]:
    """What is compared on a data set: each takes as many local steps in all."""
    steps, h, rate = 16 if quick else settings.steps, settings.interval, settings.rate
    own, shared = settings.momentum_rate, settings.global_rate

    def plan(name: str, interval: int, post_local: int, rate: float, optimizer: OptimizerSettings, codec: str) -> Plan:
        return Plan(name, steps, StepRule(interval, post_local, _NO_BUDGET, _ROUNDS), _BATCH, rate, codec, optimizer)

    sgd, dense = OptimizerSettings(), "all/float32"
    heavy, kept = OptimizerSettings(momentum=0.9), OptimizerSettings(momentum=0.9, keep_momentum=True)
    qg = OptimizerSettings(name="qg", momentum=0.9)
    nesterov = OptimizerSettings(name="qg", momentum=0.9, nesterov=True)
    # The paper's mu is for thousands of gossip steps; a hub's rounds are dozens.
    quick_qg = OptimizerSettings(name="qg", momentum=0.9, mu=0.5)
    # At two fifths, a little before the paper's half: with H = 8 it communicates 47.5 % as often as H = 1.
    switch = 2 * steps // 5 + 1
    return (
        plan("SGD, H = 1", 1, 0, rate, sgd, dense),
        plan(f"local SGD, H = {h}", h, 0, rate, sgd, dense),
        plan(f"post-local SGD, H = {h} after 2/5", h, switch, rate, sgd, dense),
        plan(f"local SGD, H = {h}, EF-sign", h, 0, rate, sgd, "all/sign"),
        plan(f"momentum reset, H = {h}", h, 0, own, heavy, dense),
        plan(f"local momentum, H = {h}", h, 0, own, kept, dense),
        plan(f"quasi-global, H = {h}", h, 0, shared, qg, dense),
        plan(f"quasi-global with mu = 0.5, H = {h}", h, 0, shared, quick_qg, dense),
        plan(f"quasi-global Nesterov, H = {h}", h, 0, shared, nesterov, dense),
    )


def adaptive(settings: Settings, fleet_bytes: int, *, quick: bool) -> Plan:
    """As many steps, in a quarter of the bytes that a round each would take. fleet_bytes: of one round."""
    steps = 16 if quick else settings.steps
    budget = BudgetSettings(steps, 0.25 * steps * fleet_bytes / (1 << 20))
    rule = StepRule(steps, 0, budget, _ROUNDS)
    return Plan("adaptive H, a quarter of the bytes", steps, rule, _BATCH, settings.rate)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tries learning rates of algorithms, and says what came of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(SETTINGS), default="hapt")
    parser.add_argument("--split", help="default: the data set's last, which is the most uneven")
    parser.add_argument("--algorithm", default="", help="what its name begins with (default: all)")
    parser.add_argument("--rate", type=float, nargs="+", required=True)
    parser.add_argument("--mu", type=float, nargs="+", default=[0.9], help="of quasi-global momentum")
    parser.add_argument("--steps", type=int, help="instead of the data set's own")
    parser.add_argument("--seed", type=int, default=11)
    chosen = parser.parse_args(arguments)
    settings = SETTINGS[chosen.data]
    given = problem(chosen.data, chosen.split or SPLITS[chosen.data][-1], chosen.seed, validate=True)
    wanted = plans(replace(settings, steps=chosen.steps or settings.steps), quick=False)
    for plan in (plan for plan in wanted if plan.algorithm.startswith(chosen.algorithm)):
        for rate in chosen.rate:
            for mu in chosen.mu if plan.optimizer.name == "qg" else chosen.mu[:1]:
                tried = replace(plan, learning_rate=rate, optimizer=replace(plan.optimizer, mu=mu))
                row = run(given, tried, chosen.seed)
                said = f"{row.accuracy_mean:.4f}, worst {row.accuracy_worst_device:.4f}, {row.rounds} rounds"
                print(f"{given.dataset}, {given.split}: {plan.algorithm}, rate {rate:g}, mu {mu:g}: {said}", flush=True)


if __name__ == "__main__":
    main()
