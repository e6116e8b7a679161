"""The algorithms of a fleet with a hub: local SGD by schedules of local steps, and momentum on the device."""

from collections.abc import Iterator, Sequence

from benchmarks.algorithm_rows import SPLITS, Row, problem
from benchmarks.hub_fleet import Plan, run

# Settings by data set, chosen on people or examples taken from the training part.
_BATCH = 32
_RATE = {"hapt": 0.05, "fashion": 0.1, "fsdd": 0.05}
_STEPS = {"hapt": 400, "fashion": 600, "fsdd": 400}


def rows(dataset: str, seeds: Sequence[int], quick: bool) -> Iterator[Row]:
    """A row for each algorithm, split and seed."""
    for seed in seeds:
        for split in SPLITS[dataset]:
            given = problem(dataset, split, seed, quick=quick)
            for plan in plans(dataset, quick=quick):
                yield run(given, plan, seed)


def plans(dataset: str, *, quick: bool) -> tuple[Plan, ...]:
    """What is compared on a data set: each takes as many local steps in all."""
    steps = 8 if quick else _STEPS[dataset]
    rate = _RATE[dataset]
    return tuple(Plan(f"local SGD, H = {h}", steps // h, (h,) * (steps // h), _BATCH, rate) for h in (1, 4))
