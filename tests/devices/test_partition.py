"""Splits over devices are partitions, whatever the labels, the skew and the number of devices."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.datasets import Dataset, Ints
from devices.partition import by_group, by_label_skew, split, write_shards
from protocol.errors import ConfigurationError


def _labels(seed: int, count: int, classes: int) -> Ints:
    return np.random.default_rng(seed).integers(0, classes, count)


def _assert_partition(shares: tuple[Ints, ...], count: int) -> None:
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(count))


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    parts=st.integers(1, 12),
    spare=st.integers(0, 400),
    classes=st.integers(1, 10),
    alpha=st.floats(0.01, 100),
    minimum=st.integers(0, 20),
)
def test_a_label_skewed_split_is_complete_disjoint_and_gives_every_device_the_minimum(
    seed: int, parts: int, spare: int, classes: int, alpha: float, minimum: int
) -> None:
    y = _labels(seed, parts * minimum + spare + 1, classes)
    shares = by_label_skew(y, parts, alpha, np.random.default_rng(seed), minimum)
    assert len(shares) == parts
    _assert_partition(shares, len(y))
    assert min(len(share) for share in shares) >= minimum


def test_a_small_alpha_skews_labels_more_than_a_large_one() -> None:
    y = _labels(3, 4000, 10)

    def skew(alpha: float) -> float:
        shares = by_label_skew(y, 5, alpha, np.random.default_rng(1))
        tops = [np.bincount(y[share], minlength=10).max() / len(share) for share in shares]
        return float(np.mean(tops))

    assert skew(0.1) > skew(1.0) > skew(100.0)
    assert skew(100.0) < 0.15


def test_the_same_seed_splits_alike() -> None:
    y = _labels(1, 500, 6)
    first, second = (by_label_skew(y, 4, 0.5, np.random.default_rng(9)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("parts", "alpha"), [(0, 1.0), (3, 0.0), (3, float("nan")), (50, 1.0)])
def test_a_split_that_cannot_be_is_refused(parts: int, alpha: float) -> None:
    with pytest.raises(ConfigurationError, match="partition"):
        by_label_skew(_labels(1, 100, 3), parts, alpha, np.random.default_rng(1))


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1000), clients=st.integers(1, 30), data=st.data())
def test_natural_clients_are_dealt_whole_to_every_device(seed: int, clients: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.concatenate([np.arange(clients), rng.integers(0, clients, 200)]))
    parts = data.draw(st.integers(1, clients))
    shares = by_group(group, parts)
    _assert_partition(shares, len(group))
    assert all(len(share) for share in shares)
    owners = [set(group[share]) for share in shares]
    assert sum(len(owner) for owner in owners) == clients


def test_more_devices_than_natural_clients_are_refused_with_the_limit() -> None:
    with pytest.raises(ConfigurationError, match=r"6 natural clients can be dealt to 1..6 devices, not 7"):
        by_group(np.arange(6), 7)


def test_shards_hold_what_the_split_says_and_the_test_file_what_is_held_out(tmp_path: Path) -> None:
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    test = np.arange(10) >= 8
    data = Dataset("tiny", x, np.arange(10) % 3, None, test, 3)
    shards = write_shards(data, {"device-01": np.array([0, 2]), "device-02": np.array([1, 3, 4])}, tmp_path)
    assert [(s.device, s.examples) for s in shards] == [("device-01", 2), ("device-02", 3)]
    with np.load(shards[1].path) as shard:
        np.testing.assert_array_equal(shard["x"], x[[1, 3, 4]])
        np.testing.assert_array_equal(shard["y"], [1, 0, 1])
        assert shard["x"].dtype == np.float32
    with np.load(tmp_path / "test.npz") as held_out:
        np.testing.assert_array_equal(held_out["y"], [2, 0])


@pytest.mark.parametrize("alpha", [0.5, None])
def test_a_split_deals_every_example_that_is_not_held_out_to_one_device(alpha: float | None) -> None:
    y, group = _labels(1, 200, 4), np.arange(200) // 20
    data = Dataset("some", np.zeros((200, 2), np.float32), y, group, np.arange(200) % 5 == 0, 4)
    shares = split(data, ("a", "b", "c"), alpha, np.random.default_rng(0))
    assert list(shares) == ["a", "b", "c"]
    np.testing.assert_array_equal(np.sort(np.concatenate(list(shares.values()))), data.train_indices)
    owners = [{int(g) for g in data.group[share]} for share in shares.values()] if data.group is not None else []
    whole = all(not one & other for i, one in enumerate(owners) for other in owners[:i])
    assert whole == (alpha is None)
