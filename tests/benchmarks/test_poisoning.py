"""The benchmark of poisoning: who lies, what is believed, and a tiny fleet that lies and is seen through."""

import numpy as np
import pytest

from benchmarks.accuracy_per_byte import bundle_of
from benchmarks.codec_fleet import Schedule
from benchmarks.poison_fleet import Attack, Outcome, run
from benchmarks.poisoning import FOLDS, PLAIN, defence, liars, row_of
from edge_agent.data import Dataset
from export.layout import flat_model
from tests.benchmarks.test_accuracy_per_byte import TINY, people

SCHEDULE = Schedule(rounds=8, steps=3, batch_size=8, learning_rate=0.2)


def test_a_fifth_lies_and_another_one_for_each_seed() -> None:
    devices = [f"d{i}" for i in range(21)]
    assert {len(liars(devices, seed)) for seed in range(5)} == {4}
    assert len({liars(devices, seed) for seed in range(5)}) > 1
    assert liars(devices, 3) == liars(devices, 3)


def test_the_plain_mean_believes_everything_and_the_others_do_not() -> None:
    plain = defence(PLAIN, 4, 2.0, 2.0)
    assert (plain.fold.clip, plain.weight, plain.norm) == ("none", 0.0, 0.0)
    for name in FOLDS[1:]:
        chosen = defence(name, 4, 2.0, 2.0)
        assert chosen.fold.clip == "median"
        assert chosen.weight > 0.0
        assert chosen.norm > 0.0
        assert chosen.fold.byzantine == 4


def test_a_row_stands_beside_the_clean_run() -> None:
    row = row_of("scaled", "median", [Outcome(0.8, 1), Outcome(0.9, 2)], [Outcome(0.95, 0)] * 2, [Outcome(0.9, 0)])
    assert (row["attack"], row["fold"], row["accuracy"], row["clean_accuracy"]) == ("scaled", "median", 0.85, 0.95)
    assert row["clean_same_fold"] == 0.9
    assert row["rejected"] == 3


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[Attack, str], Outcome]:
    data, folder = people(), tmp_path_factory.mktemp("poison")
    bundle = bundle_of(TINY, data, folder / "bundle")
    initial = flat_model(TINY.network(), bundle.manifest.tensors)
    fleet = {
        f"d{p}{half}": Dataset((data.x[where],), (data.y[where],))
        for p in range(5)
        for half in range(2)
        for where in [np.arange(40 * p + 20 * half, 40 * p + 20 * half + 20)]
    }
    held = Dataset((data.x[data.test_indices],), (data.y[data.test_indices],))
    lying = liars(sorted(fleet), 1)
    cases: list[tuple[Attack, str]] = [
        *(("none", fold) for fold in FOLDS),
        ("scaled", PLAIN),
        *(("scaled", fold) for fold in FOLDS[2:]),
    ]
    return {
        (attack, fold): run(
            bundle, initial, fleet, lying, attack, defence(fold, 2, 2.0, 2.0), SCHEDULE, held, 1, folder
        )
        for attack, fold in cases
    }


def test_everyone_learns_where_nobody_lies(outcomes: dict[tuple[Attack, str], Outcome]) -> None:
    assert min(outcomes["none", fold].accuracy for fold in FOLDS) > 0.9


def test_the_plain_mean_fails_where_robust_folds_hold(outcomes: dict[tuple[Attack, str], Outcome]) -> None:
    assert outcomes["scaled", PLAIN].accuracy < 0.7
    assert min(outcomes["scaled", fold].accuracy for fold in FOLDS[2:]) > 0.9
