"""What width tiers are worth: accuracy and time of fleets of fast and slow devices, whole, in tiers, or the fast alone.

A third of the devices is as fast as this machine, a third takes 2.2 times as long and a third 4.5 times. A round ends
with its slowest device; seconds are those of measured steps, multiplied. Bytes and waiting are not in it.
"""

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import mean, median, stdev

import numpy as np

from benchmarks.harness import options, progress_console, publish
from benchmarks.tier_fleet import Member, Outcome, Schedule, run, wall_s
from benchmarks.zoo import spec_of
from coordinator.tiering import Measured, Target, assign, tiers_of
from devices.datasets import Dataset as Labelled
from devices.datasets import Ints, load_dataset
from devices.partition import by_label_skew
from edge_agent.data import Dataset
from export.bundle import write_bundle
from export.layout import flat_model
from protocol.bundle import Bundle, open_bundle
from protocol.manifest import FULL, Manifest
from sparse.widths import Mode

# A class of devices: the tier that it works on, and how many times longer than here its steps take.
Class = tuple[str, float]
# In equal parts.
CLASSES: tuple[Class, ...] = ((FULL, 1.0), ("tier-050", 2.2), ("tier-025", 4.5))
SHARES = (1.0, 0.5, 0.25)
SEEDS = 3


@dataclass(frozen=True, slots=True)
class Task:
    """A data set, the network of the zoo that is trained on it, and how."""

    data: str
    network: str
    schedule: Schedule


# Chosen with --validate, on training clients that were held out from training.
TASKS: Mapping[str, Task] = {
    "hapt": Task("hapt", "cnn_1d", Schedule(rounds=80, steps=4, batch_size=16, learning_rate=0.03)),
}
FLEETS: Mapping[str, Mode] = {
    "all 1.0": "static",
    "tiers, static": "static",
    "tiers, rolling": "rolling",
    "tiers, importance": "importance",
    "tiers, as assigned": "importance",
    "fast third alone": "static",
}


def main() -> None:
    parsed = _options().parse_args()
    console = progress_console()
    with tempfile.TemporaryDirectory(prefix="tiers-") as folder:
        task = TASKS[parsed.data]
        if parsed.quick:
            task = replace(task, schedule=replace(task.schedule, rounds=2))
        bundle = bundle_of(task, Path(folder) / "bundle")
        data = load_dataset(task.data)
        clients, held_out = clients_of(data, validate=parsed.validate)
        classes = {name: classes_of(name, bundle.manifest, task.schedule) for name in FLEETS}
        seeds = range(parsed.seed, parsed.seed + parsed.seeds)
        found: dict[str, list[Outcome]] = {}
        # Seed by seed, so that whatever the machine does meanwhile falls on all fleets alike.
        for seed in seeds:
            initial = flat_model(spec_of(task.network, seed=seed).module, bundle.manifest.tensors)
            for name in parsed.fleets or FLEETS:
                fleet = fleet_of(name, data, clients, seed, classes[name])
                outcome = run(bundle, initial, fleet, FLEETS[name], task.schedule, _examples(data, held_out), seed)
                console.print(f"{name}, seed {seed}: {outcome.accuracy:.4f}")
                found.setdefault(name, []).append(outcome)
    step_s = _step_s(list(chain.from_iterable(found.values())))
    schedule = task.schedule
    rows = [
        {
            "fleet": name,
            "tiers": " ".join(tier.removeprefix("tier-") for tier, _ in classes[name]),
            "devices": len(fleet_of(name, data, clients, seeds[0], classes[name])),
            "accuracy_mean": round(mean(o.accuracy for o in outcomes), 4),
            "accuracy_sd": round(stdev(o.accuracy for o in outcomes), 4) if len(outcomes) > 1 else 0.0,
            "wall_s": round(wall_s(fleet_of(name, data, clients, seeds[0], classes[name]), schedule, step_s), 2),
            "seeds": len(outcomes),
        }
        for name, outcomes in found.items()
    ]
    publish(
        rows,
        seed=parsed.seed,
        as_json=parsed.json,
        title=f"{task.network} on {task.data}, {'validation' if parsed.validate else 'held-out'} clients",
        notes=[
            f"{schedule.rounds} rounds of {schedule.steps} steps of {schedule.batch_size}, learning rate "
            f"{schedule.learning_rate:g} along a cosine, all devices in every round; accuracy of the whole model",
            "wall_s: rounds that last as long as their slowest device, whose steps take 1, 2.2 or 4.5 times as long as "
            "here: " + ", ".join(f"{1e3 * seconds:.2f} ms on {tier}" for tier, seconds in sorted(step_s.items())) + " "
            "(medians of all fleets' steps, processor time of one thread)",
        ],
    )


def bundle_of(task: Task, folder: Path) -> Bundle:
    """The task's network with all tiers."""
    write_bundle(spec_of(task.network), folder, line="tiers", backends=("portable",), tiers=SHARES)
    return open_bundle(folder)


def clients_of(data: Labelled, *, validate: bool) -> tuple[list[Ints], Ints]:
    """What each client holds, as places in the data set, and what is held out: the test people, or for choosing
    settings every fourth of the others."""
    train = data.train_indices
    if data.group is None:
        shares = by_label_skew(data.y[train], 24, 0.3, np.random.default_rng(0))
        clients = [train[share] for share in shares]
    else:
        clients = [train[data.group[train] == person] for person in np.unique(data.group[train])]
    if not validate:
        return clients, data.test_indices
    return [c for i, c in enumerate(clients) if i % 4], np.concatenate(clients[::4])


def fleet_of(
    name: str, data: Labelled, clients: Sequence[Ints], seed: int, classes: tuple[Class, ...] = CLASSES
) -> list[Member]:
    """The clients as devices, a third in each class, drawn by the seed alone and so alike for all fleets."""
    order = np.random.default_rng(seed).permutation(len(clients))
    members = []
    for place, client in enumerate(order.tolist()):
        tier, slowness = classes[place % len(classes)]
        if slowness == 1.0 or not name.startswith("fast"):
            members.append(Member(f"client-{client:02d}", _examples(data, clients[client]), tier, slowness))
    return members


def classes_of(name: str, manifest: Manifest, schedule: Schedule) -> tuple[Class, ...]:
    """The tier of each class of devices in a fleet: of one as assigned what the coordinator would give it."""
    if not name.startswith("tiers"):
        return tuple((FULL, slowness) for _, slowness in CLASSES)
    if name != "tiers, as assigned":
        return CLASSES
    devices = {str(slowness): Measured(tier=FULL, step_s=slowness) for _, slowness in CLASSES}
    given = assign(devices, tiers_of(manifest, schedule.batch_size), Target(schedule.steps))
    return tuple((str(given[str(slowness)]), slowness) for _, slowness in CLASSES)


def _step_s(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """The median seconds of a step on each tier, over all fleets."""
    tiers = {tier for outcome in outcomes for tier in outcome.step_s}
    return {tier: median(s for outcome in outcomes for s in outcome.step_s.get(tier, ())) for tier in tiers}


def _examples(data: Labelled, places: Ints) -> Dataset:
    return Dataset((data.x[places],), (data.y[places],))


def _options() -> argparse.ArgumentParser:
    parser = options(__doc__ or "")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many (default: {SEEDS})")
    parser.add_argument("--data", choices=sorted(TASKS), default="hapt", help="default: hapt")
    parser.add_argument("--fleets", nargs="+", choices=list(FLEETS), help="default: all")
    parser.add_argument("--validate", action="store_true", help="on training clients held out, to choose settings by")
    return parser


if __name__ == "__main__":
    main()
