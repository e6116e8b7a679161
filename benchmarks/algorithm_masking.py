"""Masks over frozen weights against fine-tuning them: what a fleet makes of weights that were trained elsewhere.

    python -m benchmarks.algorithm_masking --data hapt --rate 0.1 0.3 --vote-rate 0.3 1

tries settings of the masks, on a part of the training people or examples, and with --tuning-rate those of fine-tuning:
what the settings below were chosen by.

HAPT: the weights are trained on every third person, and the fleet is the others. Fashion-MNIST: the weights are trained
on half of each device's examples, all together; the fleet sees the world in a mirror, and so does who measures. The
last layer has no mask: with uneven labels a few of its weights are all that a label has.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks import hub_fleet
from benchmarks.algorithm_rows import SPLITS, Problem, Row, problem
from benchmarks.vote_fleet import Plan, run
from coordinator.local_steps import BudgetSettings, StepRule
from edge_agent.data import Dataset
from edge_agent.runtimes.engine import Vector
from edge_agent.runtimes.optimizers import OptimizerSettings
from edge_agent.training import LocalTraining, Recipe

_BATCH = 32
# No algorithm takes more rounds than that.
_ROUNDS = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Of a data set, chosen on people or examples taken from the training part. steps, rate: of the training before the
    fleet's. keep, mask_rate, vote_rate: of masks. tuning_rate: of fine-tuning."""

    steps: int
    rate: float
    rounds: int
    local_steps: int
    keep: float
    mask_rate: float
    vote_rate: float
    tuning_rate: float


SETTINGS = {
    "hapt": Settings(600, 0.05, 30, 16, 0.9, 0.3, 0.3, 0.02),
    "fashion": Settings(600, 0.1, 30, 16, 0.8, 0.3, 0.5, 0.2),
}


def rows(dataset: str, seeds: Sequence[int], quick: bool) -> Iterator[Row]:
    """A row for each algorithm, split and seed; none of a data set that this part is not about."""
    if dataset not in SETTINGS:
        return
    settings = replace(SETTINGS[dataset], steps=20, rounds=2, local_steps=2) if quick else SETTINGS[dataset]
    for seed in seeds:
        for split in SPLITS[dataset]:
            given = pretrained(problem(dataset, split, seed, quick=quick), settings, seed)
            yield frozen(given)
            for codec in ("all/float32", "all/sign"):
                yield hub_fleet.run(given, tuning(settings, codec), seed)
            yield run(given, masks(settings), seed)


def masks(settings: Settings) -> Plan:
    return Plan(
        "masks over frozen weights",
        settings.rounds,
        settings.local_steps,
        _BATCH,
        settings.keep,
        settings.mask_rate,
        settings.vote_rate,
    )


def tuning(settings: Settings, codec: str) -> hub_fleet.Plan:
    """As many rounds and steps of local SGD from the same weights."""
    rule = StepRule(settings.local_steps, 0, BudgetSettings(), _ROUNDS)
    steps = settings.rounds * settings.local_steps
    return hub_fleet.Plan("fine-tuning, local SGD", steps, rule, _BATCH, settings.tuning_rate, codec)


def frozen(given: Problem) -> Row:
    """The weights as they are: fetched once."""
    accuracy, worst = given.accuracy(given.initial), given.worst_device(given.initial)
    size = 4 * len(given.initial)
    found = (round(accuracy, 4), 0.0, round(worst, 4))
    return Row(given.dataset, given.split, "hub", "frozen weights", "all/float32", 0, size, *found)


def pretrained(given: Problem, settings: Settings, seed: int) -> Problem:
    """The same problem for the devices that are left, and from weights that were trained before it."""
    if given.dataset == "fashion":
        halves = {name: (_part(data, 0), _mirrored(_part(data, 1))) for name, data in given.fleet.items()}
        before = [first for first, _ in halves.values()]
        fleet = {name: second for name, (_, second) in halves.items() if len(second)}
        shares = given.shares[[i for i, (_, second) in enumerate(halves.values()) if len(second)]]
        moved, split = replace(given, fleet=fleet, shares=shares), f"mirrored, {given.split}"
        moved = replace(moved, held_out=_mirrored(given.held_out))
    else:
        names = sorted(given.fleet)
        before = [given.fleet[name] for name in names[::3]]
        moved = replace(given, fleet={name: given.fleet[name] for name in names if name not in names[::3]})
        split = "new people"
    last = [t.name for t in given.manifest.tensors if t.prunable][-1]
    tensors = tuple(replace(t, prunable=t.prunable and t.name != last) for t in given.manifest.tensors)
    bundle = replace(given.bundle, manifest=replace(given.manifest, tensors=tensors))
    return replace(moved, split=split, bundle=bundle, initial=_trained(given, before, settings, seed))


def _trained(given: Problem, before: Sequence[Dataset], settings: Settings, seed: int) -> Vector:
    inputs = np.concatenate([np.asarray(data.inputs[0][:]) for data in before])
    targets = np.concatenate([np.asarray(data.targets[0][:]) for data in before])
    decay = (2 * settings.steps // 3,)
    recipe = Recipe(settings.steps, 0, _BATCH, settings.rate, OptimizerSettings(momentum=0.5), seed, decay)
    local = LocalTraining(given.engine, given.manifest, Dataset((inputs,), (targets,)), recipe, given.initial)
    local.advance(float("inf"))
    return local.result().model.copy()


def _part(data: Dataset, half: int) -> Dataset:
    return Dataset((np.asarray(data.inputs[0][half::2]),), (np.asarray(data.targets[0][half::2]),))


def _mirrored(data: Dataset) -> Dataset:
    return replace(data, inputs=(np.ascontiguousarray(np.asarray(data.inputs[0][:])[..., ::-1]),))


def main(arguments: Sequence[str] | None = None) -> None:
    """Tries settings, and says what came of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(SETTINGS), default="hapt")
    parser.add_argument("--split", help="default: the data set's last, which is the most uneven")
    parser.add_argument("--rate", type=float, nargs="*", default=[], help="of scores")
    parser.add_argument("--vote-rate", type=float, nargs="+", help="default: the data set's own")
    parser.add_argument("--keep", type=float, nargs="+", help="default: the data set's own")
    parser.add_argument("--tuning-rate", type=float, nargs="*", default=[], help="of fine-tuning")
    parser.add_argument("--seed", type=int, default=11)
    chosen = parser.parse_args(arguments)
    settings, split = SETTINGS[chosen.data], chosen.split or SPLITS[chosen.data][-1]
    given = pretrained(problem(chosen.data, split, chosen.seed, validate=True), settings, chosen.seed)
    _say("frozen weights", frozen(given))
    for rate in chosen.tuning_rate:
        for codec in ("all/float32", "all/sign"):
            row = hub_fleet.run(given, tuning(replace(settings, tuning_rate=rate), codec), chosen.seed)
            _say(f"fine-tuning, {codec}, rate {rate:g}", row)
    for keep in chosen.keep or [settings.keep]:
        for vote_rate in chosen.vote_rate or [settings.vote_rate]:
            for rate in chosen.rate:
                tried = replace(settings, keep=keep, mask_rate=rate, vote_rate=vote_rate)
                said = f"masks, keep {keep:g}, rate {rate:g}, vote rate {vote_rate:g}"
                _say(said, run(given, masks(tried), chosen.seed))


def _say(what: str, row: Row) -> None:
    found = f"{row.accuracy_mean:.4f}, worst {row.accuracy_worst_device:.4f}, {row.bytes:,} bytes, {row.rounds} rounds"
    print(f"{row.dataset}, {row.split}: {what}: {found}", flush=True)


if __name__ == "__main__":
    main()
