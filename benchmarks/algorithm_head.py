"""A head of each device's own beside the fleet's, and FedTHE's mix of both, on own data and under shift.

    python -m benchmarks.algorithm_head --data fashion --steps 50 200 --rate 0.5 --decay 0 0.01

tries settings of the head, on a part of the training data: what those below were chosen by. The mix has the authors'
constants.
"""

import argparse
from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.algorithm_hub import SETTINGS
from benchmarks.algorithm_rows import SPLITS, Problem, Row, problem
from benchmarks.head_fleet import KINDS, Answers, accuracies, answers, asked_of
from benchmarks.hub_fleet import Plan, trained
from coordinator.local_steps import BudgetSettings, StepRule
from edge_agent.personal.head import HeadRecipe
from edge_agent.personal.mixture import MixRule
from edge_agent.personal.settings import PersonalSettings

_BATCH, _ROUNDS = 32, 1 << 20
# Local steps of the training before heads are tried: longer than in the comparison of hubs.
_STEPS = {"hapt": 400, "fashion": 600}
_SETTINGS = PersonalSettings()
_RULE = MixRule()
# Of a device in the whole run: more than the comparison of hubs takes, for a head is of a fleet that has learnt.
_STEPS = {"hapt": 400, "fashion": 600}


def rows(dataset: str, seeds: Sequence[int], quick: bool) -> Iterator[Row]:
    """A row for each way to answer, kind of question, split and seed."""
    for seed in seeds:
        for split in SPLITS[dataset]:
            if dataset in _STEPS and split in ("person", "dirichlet 0.1"):
                yield from _of(problem(dataset, split, seed, quick=quick), seed, quick)


def _of(given: Problem, seed: int, quick: bool) -> Iterator[Row]:
    given, asked = asked_of(given, seed, validate=False)
    plan = _plan(given.dataset, quick)
    model, spent = trained(given, plan, seed)
    devices = answers(given, model, asked, _SETTINGS.recipe, _SETTINGS.most_examples)
    for kind in KINDS:
        for name, found in accuracies(devices, kind, _RULE).items():
            yield _row(given, kind, name, found, spent, devices)


def _row(
    given: Problem, kind: str, name: str, found: Sequence[float], spent: Sequence[int], devices: Sequence[Answers]
) -> Row:
    # What the paper sends beside the model, in each direction and round: a mean of features.
    told = 2 * len(spent) * devices[0].means.own.nbytes if name.endswith("told") else 0
    return Row(
        *(given.dataset, f"{given.split}, asked {kind}", "hub", name, "all/float32", len(spent)),
        bytes=sum(spent) // len(given.fleet) + told,
        accuracy_mean=round(float(np.mean(found)), 4),
        accuracy_sd=0.0,
        accuracy_worst_device=round(min(found), 4),
    )


def _plan(dataset: str, quick: bool) -> Plan:
    """Local SGD, at the rate that the comparison of hubs has."""
    s = SETTINGS[dataset]
    rule = StepRule(s.interval, 0, BudgetSettings(), _ROUNDS)
    return Plan("local SGD", 16 if quick else _STEPS[dataset], rule, _BATCH, s.rate)


def main(arguments: Sequence[str] | None = None) -> None:
    """Tries settings of the head, and says what came of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("fashion", "hapt"), default="hapt")
    parser.add_argument("--steps", type=int, nargs="+", default=[_SETTINGS.steps])
    parser.add_argument("--rate", type=float, nargs="+", default=[_SETTINGS.rate])
    parser.add_argument("--decay", type=float, nargs="+", default=[_SETTINGS.weight_decay])
    parser.add_argument("--beta", type=float, nargs="+", default=[_RULE.beta], help="of the mix's smoothing")
    parser.add_argument("--seed", type=int, default=11)
    chosen = parser.parse_args(arguments)
    given = problem(chosen.data, SPLITS[chosen.data][-1], chosen.seed, validate=True)
    given, asked = asked_of(given, chosen.seed, validate=True)
    model, _ = trained(given, _plan(chosen.data, quick=False), chosen.seed)
    for steps in chosen.steps:
        for rate in chosen.rate:
            for decay in chosen.decay:
                recipe = HeadRecipe(steps, _SETTINGS.batch_size, rate, decay)
                devices = answers(given, model, asked, recipe, _SETTINGS.most_examples)
                for beta in chosen.beta:
                    what = f"{chosen.data}: steps {steps} rate {rate:g} decay {decay:g} beta {beta:g}"
                    _tell(what, devices, MixRule(beta=beta))


def _tell(what: str, devices: Sequence[Answers], rule: MixRule) -> None:
    for kind in KINDS:
        said = [
            f"{name} {np.mean(found):.4f} worst {min(found):.4f}"
            for name, found in accuracies(devices, kind, rule).items()
        ]
        print(f"{what}, {kind}: {'; '.join(said)}", flush=True)


if __name__ == "__main__":
    main()
