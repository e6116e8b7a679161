"""The benchmark of accuracy per byte: its splits, its rows, its cache, and a tiny federation under real codecs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

from benchmarks.accuracy_per_byte import CODECS, DENSE, Cache, Task, _run, bundle_of, row_of, split_of
from benchmarks.byte_plot import save_plot
from benchmarks.codec_fleet import Outcome, Schedule
from devices.datasets import Dataset
from sparse.codecs import parse_codec


def people() -> Dataset:
    """Eight people of 40 examples, two classes that lie apart; the last two are held out."""
    rng = np.random.default_rng(1)
    y = rng.integers(0, 2, 320)
    x = (rng.normal(0, 0.3, (320, 4)) + y[:, None]).astype(np.float32)
    group = np.repeat(np.arange(8), 40)
    return Dataset("people", x, y, group, group >= 6, 2)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


TINY = Task("people", network, Schedule(rounds=8, steps=3, batch_size=8, learning_rate=0.2))


def test_who_is_measured_on_trains_nobody() -> None:
    data = people()
    for validate in (False, True):
        split = split_of(data, 1, validate=validate)
        held = np.concatenate(list(split.clients.values()))
        assert not set(held) & set(split.measured)
        assert not set(held) & set(data.test_indices)
        assert bool(set(split.measured) & set(data.test_indices)) is not validate
    skewed = replace(data, group=None, x=np.tile(data.x, (4, 1)), y=np.tile(data.y, 4), test=np.tile(data.test, 4))
    split = split_of(skewed, 1, validate=True)
    assert len(split.clients) == 20
    assert not set(split.measured) & set(skewed.test_indices)


def test_codecs_are_known_and_at_least_eight_families_of_bytes() -> None:
    assert CODECS[0] == DENSE
    names = [codec.partition(" down ") for codec in CODECS]
    assert len({str(parse_codec(up)) for up, _, down in names if not down}) >= 8
    assert all(parse_codec(down) for _, _, down in names if down)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    bundle = bundle_of(TINY, people(), tmp_path_factory.mktemp("tiny") / "bundle")
    codecs = (DENSE, "topk:0.1/ternary", "all/drive", "all/float16 down topk:0.3/int8")
    return {codec: _run(TINY, bundle, people(), codec, 1, validate=False) for codec in codecs}


def test_a_fleet_learns_under_any_codec_and_sends_less_than_dense(outcomes: dict[str, Outcome]) -> None:
    dense = outcomes[DENSE]
    assert dense.accuracy > 0.9
    for codec, found in outcomes.items():
        assert found.accuracy > 0.8, codec
        if codec != DENSE:
            assert found.uplink_bytes < dense.uplink_bytes
            # A task names its codec, and the step to a model that travels so.
            assert abs(found.downlink_bytes - dense.downlink_bytes) < (16 if " down " not in codec else 400)
    assert 4 * 114 < dense.uplink_bytes < 4 * 114 + 1500, "the messages around 114 parameters are counted"


def test_a_row_has_means_spread_and_ratios(tmp_path: Path) -> None:
    dense = [Outcome(0.9, 1000.0, 2000.0), Outcome(0.8, 1000.0, 2000.0)]
    row = row_of("people", "all/int4", [Outcome(0.7, 100.0, 2000.0), Outcome(0.9, 300.0, 2000.0)], dense)
    assert (row["uplink_bytes"], row["uplink_ratio_to_dense"], row["downlink_ratio_to_dense"]) == (200, 0.2, 1.0)
    assert (row["accuracy_mean"], row["accuracy_sd"]) == (0.8, round(0.02**0.5, 4))
    assert row_of("people", DENSE, dense[:1], dense)["accuracy_sd"] == 0.0
    save_plot([row, row_of("people", DENSE, dense, dense)], tmp_path / "plot.svg")
    assert "all/int4" in (tmp_path / "plot.svg").read_text()


def test_a_finished_run_is_found_again(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "runs.jsonl")
    cache.put("a run", Outcome(0.5, 1.0, 2.0))
    again = Cache(tmp_path / "runs.jsonl")
    assert again.get("a run") == Outcome(0.5, 1.0, 2.0)
    assert again.get("another") is None
