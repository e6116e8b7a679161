"""Buckets: each update is in one, nobody can choose which, and devices that differ are closer together in them."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.buckets import draw
from coordinator.fold import Weighted
from coordinator.robust import robust_fold
from coordinator.trust_settings import FoldSettings, Rule
from tests.coordinator.test_robust import ALL, HEAD, HERE, RULES, B, N, by, folded, honest, stacked, whole

UPDATES = [Weighted(f"d{i:02d}", 1, ALL) for i in range(11)]


@given(devices=st.integers(1, 30), size=st.integers(1, 6), label=st.binary(max_size=40))
def test_every_update_is_in_one_bucket_and_only_the_last_is_not_full(devices: int, size: int, label: bytes) -> None:
    buckets = draw([Weighted(f"d{i:02d}", 1, ALL) for i in range(devices)], size, label)
    assert sorted(chain.from_iterable(buckets)) == list(range(devices))
    assert {len(bucket) for bucket in buckets[:-1]} <= {size}
    assert 0 < len(buckets[-1]) <= size


def test_each_fold_draws_anew_and_the_same_fold_the_same() -> None:
    assert draw(UPDATES, 2, b"run/1/x") == draw(UPDATES, 2, b"run/1/x")
    partners = {tuple(next(b for b in draw(UPDATES, 2, b"%d" % i) if 0 in b)) for i in range(200)}
    assert len(partners) == 11, "with each of the ten others at times, and alone at times"


def test_a_median_of_buckets_is_the_median_of_their_means() -> None:
    found, label = honest(10), b"run/7/set"
    updates = [Weighted(d, 1, ALL) for d in found]
    means = np.array([stacked(found)[places].mean(axis=0) for places in draw(updates, 2, label)])
    result = robust_fold(FoldSettings("median", bucket=2), updates, by(found), N, B, HERE, label)
    np.testing.assert_allclose(whole(result), np.median(means, axis=0), rtol=1e-6)


def test_what_few_devices_see_reaches_the_median_in_buckets() -> None:
    """A class that four of ten devices have: their direction is never the middle value, but is of most pairs."""
    found = {f"d{i}": (np.zeros(N, np.float32), np.zeros(B, np.float32)) for i in range(10)}
    for i in range(4):
        found[f"d{i}"][0][0] = 1.0
    updates = [Weighted(d, 1, ALL) for d in found]
    assert folded("median", found).parameters[0] == 0.0
    bucketed = [
        robust_fold(FoldSettings("median", bucket=2), updates, by(found), N, B, HERE, b"%d" % i).parameters[0]
        for i in range(50)
    ]
    assert np.mean(bucketed) > 0.2


@pytest.mark.parametrize("rule", RULES)
def test_two_liars_of_fourteen_spoil_two_buckets_and_no_fold(rule: Rule) -> None:
    found = honest(14)
    true = stacked(dict(list(found.items())[2:]))
    for liar in ("d00", "d01"):
        found[liar] = (np.float32(-1e4) * found[liar][0], np.float32(-1e4) * found[liar][1])
    updates = [Weighted(d, 1, ALL) for d in found]
    settings = FoldSettings(rule, byzantine=2, trim=0.3, bucket=2)
    for draws in range(5):
        result = whole(robust_fold(settings, updates, by(found), N, B, HERE, b"%d" % draws))
        assert (np.abs(result - true.mean(axis=0)) < 1.0).all()


@pytest.mark.parametrize("rule", RULES)
def test_buckets_come_to_the_same_bits_in_whatever_order_updates_came(rule: Rule) -> None:
    found = honest(9)
    updates = [Weighted(d, 1 + i, HEAD if i % 3 == 2 else ALL) for i, d in enumerate(found)]
    found |= {u.device: (found[u.device][0][8:], found[u.device][1][:0]) for u in updates if u.layout is HEAD}
    settings = FoldSettings(rule, bucket=2)
    once = robust_fold(settings, updates, by(found), N, B, HERE, b"x")
    again = robust_fold(settings, updates[::-1], by(found), N, B, HERE, b"x")
    assert whole(once).tobytes() == whole(again).tobytes()
    assert np.isfinite(whole(once)).all()


def test_what_only_one_of_a_bucket_trained_is_its_own() -> None:
    found = honest(3)
    masked = np.arange(N) < 5
    updates = [replace(Weighted(d, 1, ALL), mask=masked if i else None) for i, d in enumerate(found)]
    result = robust_fold(FoldSettings("median", bucket=3), updates, by(found), N, B, HERE)
    np.testing.assert_allclose(result.parameters[5:], stacked(found)[0, 5:N], rtol=1e-6)
    np.testing.assert_allclose(result.parameters[:5], stacked(found)[:, :5].mean(axis=0), rtol=1e-6)
    assert result.trained.all()
