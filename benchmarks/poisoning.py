"""What devices that lie do to the model under each fold, beside a run in which nobody lies.

    python -m benchmarks.poisoning --json

HAPT: 21 people, a device each, nine others held out. A fifth of the devices, drawn by seed, send their update with its
sign turned (sign-flip), ten times the other way (scaled), or noise of ten times its norm (random), and say that they
have as many examples as the coordinator believes. clean_accuracy is of the plain mean with everyone honest, and
clean_same_fold of the same fold; rows of attack "none" say what a fold costs then, and "absent" is the plain mean of
the honest alone. Settings were chosen with
--validate, which measures on a part of the training people. What is finished is kept in --cache, and a run that was
broken off goes on.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from time import monotonic
from typing import get_args

import numpy as np
import torch
from rich.console import Console
from torch import nn

from benchmarks.accuracy_per_byte import Task, bundle_of, split_of
from benchmarks.codec_fleet import Schedule
from benchmarks.harness import Row, options, progress_console, publish
from benchmarks.poison_fleet import Attack, Defence, Outcome, run
from coordinator.settings import LimitSettings
from coordinator.trust_settings import FoldSettings
from devices.datasets import Dataset as Labelled
from devices.datasets import load_dataset
from edge_agent.data import Dataset
from export.layout import flat_model
from protocol.bundle import Bundle

SHARE = 0.2
SEEDS = 3
PLAIN = "plain-mean"
SETTINGS: Mapping[str, FoldSettings] = {
    PLAIN: FoldSettings(clip="none"),
    "clipped-mean": FoldSettings(),
    "median": FoldSettings("median"),
    "trimmed-mean": FoldSettings("trimmed-mean"),
    "krum": FoldSettings("krum"),
    "multi-krum": FoldSettings("multi-krum"),
    "geometric-median": FoldSettings("geometric-median"),
    "median, buckets": FoldSettings("median", bucket=2),
    "geometric-median, buckets": FoldSettings("geometric-median", bucket=2),
    "multi-krum, buckets": FoldSettings("multi-krum", bucket=2),
    "multi-krum, memory": FoldSettings("multi-krum", memory=0.9),
}
FOLDS = tuple(SETTINGS)
ATTACKS: tuple[Attack, ...] = get_args(Attack)


def network() -> nn.Module:
    """Two strided convolutions and a layer, 6,550 parameters: small, for there are many runs."""
    return nn.Sequential(
        nn.Conv1d(6, 16, 9, stride=4, padding=4),
        nn.ReLU(),
        nn.Conv1d(16, 32, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 6),
    )


TASK = Task("hapt", network, Schedule(rounds=50, steps=10, batch_size=16, learning_rate=0.05))


def main() -> None:
    chosen = _options().parse_args()
    seeds = range(chosen.seed, chosen.seed + (1 if chosen.quick else chosen.seeds))
    task = _changed(chosen)
    folds = tuple(dict.fromkeys((PLAIN, *(chosen.fold or FOLDS))))
    attacks: tuple[Attack, ...] = tuple(dict.fromkeys(("none", *(chosen.attack or ATTACKS))))
    notes = [
        f"a share of {SHARE} of the devices lies; seeds {', '.join(map(str, seeds))}; {asdict(task.schedule)}",
        "accuracy on " + ("a part of the training people" if chosen.validate else "the nine people held out"),
    ]
    found: dict[tuple[Attack, str], list[Outcome]] = {(a, f): [] for a in attacks for f in folds_under(a, folds)}
    console, data = progress_console(), load_dataset(task.data)
    with tempfile.TemporaryDirectory(prefix="poisoning-") as folder:
        bundle = bundle_of(task, data, Path(folder) / "bundle")
        runs = Runs(task, bundle, data, chosen.cache, console, validate=chosen.validate)
        # Seed by seed, so that what is broken off still compares all folds.
        for seed in seeds:
            for attack in attacks:
                for fold in folds_under(attack, folds):
                    found[attack, fold].append(runs.outcome(attack, fold, seed, chosen.clip_factor, chosen.weight))
    clean = found["none", PLAIN]
    rows = [row_of(attack, fold, done, clean, found["none", fold]) for (attack, fold), done in found.items()]
    publish(rows, seed=chosen.seed, as_json=chosen.json, title="Accuracy with a fifth of liars", notes=notes)


class Runs:
    """Runs by attack, fold and seed; those in the cache, a file of JSON lines, are not repeated."""

    def __init__(
        self, task: Task, bundle: Bundle, data: Labelled, cache: Path | None, console: Console, *, validate: bool
    ) -> None:
        self._task, self._bundle, self._data, self._cache = task, bundle, data, cache
        self._console, self._validate, self._started = console, validate, monotonic()
        self._known: dict[str, Outcome] = {}
        if cache is not None and cache.exists():
            for line in cache.read_text().splitlines():
                said = json.loads(line)
                key = said.pop("run")
                self._known[key] = Outcome(**said)

    def outcome(self, attack: Attack, fold: str, seed: int, clip_factor: float, weight: float) -> Outcome:
        key = f"{attack} {fold} {seed} {self._validate} {clip_factor} {weight} {self._task.schedule}"
        known = self._known.get(key)
        if known is not None:
            return known
        split = split_of(self._data, seed, validate=self._validate)
        fleet = {name: self._examples(places) for name, places in split.clients.items()}
        torch.manual_seed(seed)
        initial = flat_model(self._task.network(), self._bundle.manifest.tensors)
        lying = liars(sorted(fleet), seed)
        with tempfile.TemporaryDirectory(prefix="poisoning-") as folder:
            done = run(
                *(self._bundle, initial, fleet, lying, attack, defence(fold, len(lying), clip_factor, weight)),
                *(self._task.schedule, self._examples(split.measured), seed, Path(folder)),
            )
        self._console.print(
            f"{monotonic() - self._started:6.0f} s  seed {seed} {attack} {fold}: {done.accuracy:.4f}", markup=False
        )
        if self._cache is not None:
            with self._cache.open("a") as file:
                file.write(json.dumps({"run": key, **asdict(done)}) + "\n")
        return done

    def _examples(self, places: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> Dataset:
        return Dataset((self._data.x[places],), (self._data.y[places],))


def folds_under(attack: Attack, folds: tuple[str, ...]) -> tuple[str, ...]:
    return (PLAIN,) if attack == "absent" else folds


def liars(devices: Sequence[str], seed: int) -> frozenset[str]:
    """A fifth of the devices, rounded down, another one for each seed."""
    count = math.floor(SHARE * len(devices))
    return frozenset(np.random.default_rng(seed).choice(devices, count, replace=False).tolist())


def defence(fold: str, lying: int, clip_factor: float, weight: float) -> Defence:
    """The plain mean believes all; every other has the coordinator's defaults, and Krum is told how many lie."""
    if fold == PLAIN:
        return Defence(fold, SETTINGS[fold], weight=0.0, norm=0.0)
    settings = replace(SETTINGS[fold], byzantine=lying, clip_factor=clip_factor)
    return Defence(fold, settings, weight, LimitSettings().norm)


def row_of(
    attack: Attack, fold: str, runs: Sequence[Outcome], clean: Sequence[Outcome], own_clean: Sequence[Outcome]
) -> Row:
    """The means over seeds, and the spread of a single run (the sample's standard deviation, 0 of one).

    clean: runs of the plain mean in which nobody lies; own_clean: such runs of the same fold.
    """
    accuracies = [r.accuracy for r in runs]
    return {
        "attack": attack,
        "fold": fold,
        "accuracy": round(mean(accuracies), 4),
        "clean_accuracy": round(mean(r.accuracy for r in clean), 4),
        "clean_same_fold": round(mean(r.accuracy for r in own_clean), 4),
        "accuracy_sd": round(stdev(accuracies), 4) if len(accuracies) > 1 else 0.0,
        "rejected": sum(r.rejected for r in runs),
        "seeds": len(runs),
    }


def _changed(chosen: argparse.Namespace) -> Task:
    """The task with what was asked for on the command line, to choose settings by."""
    schedule = replace(TASK.schedule, rounds=2) if chosen.quick else TASK.schedule
    for name in ("rounds", "steps", "learning_rate"):
        if getattr(chosen, name) is not None:
            schedule = replace(schedule, **{name: getattr(chosen, name)})
    return replace(TASK, schedule=schedule)


def _options() -> argparse.ArgumentParser:
    parser = options(__doc__ or "")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many, from --seed on (default: {SEEDS})")
    parser.add_argument("--attack", choices=ATTACKS, action="append", help="again for more (default: all)")
    parser.add_argument("--fold", choices=FOLDS, action="append", help="again for more (default: all)")
    parser.add_argument("--rounds", type=int, help=f"instead of {TASK.schedule.rounds}")
    parser.add_argument("--steps", type=int, help=f"of a device in a round, instead of {TASK.schedule.steps}")
    parser.add_argument("--learning-rate", type=float, help=f"instead of {TASK.schedule.learning_rate}")
    parser.add_argument("--clip-factor", type=float, default=FoldSettings().clip_factor, help="fold.clip_factor")
    parser.add_argument("--weight", type=float, default=LimitSettings().weight, help="limits.weight")
    parser.add_argument("--validate", action="store_true", help="measure on a part of the training people")
    parser.add_argument("--cache", type=Path, help="keep finished runs in this file, and do not repeat them")
    return parser


if __name__ == "__main__":
    main()
