"""Robust folds: held against their papers' definitions, against liars, and against themselves in another order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator import spill
from coordinator.fold import Decoded, Folded, Weighted, fold
from coordinator.folding import CREDULOUS, Caution, fold_bounded
from coordinator.norms import Norms
from coordinator.robust import robust_fold
from coordinator.trust_settings import FoldSettings, Rule
from protocol.layout import Layout, Vector

N, B = 12, 3
ALL = Layout((slice(0, N),), (slice(N, N + B),), bytes(8))
HEAD = Layout((slice(8, N),), (), b"heads123")
RULES: tuple[Rule, ...] = tuple(rule for rule in get_args(Rule) if rule != "mean")
HERE = Path()


def honest(devices: int, seed: int = 1) -> dict[str, Decoded]:
    """Updates round one direction."""
    rng = np.random.default_rng(seed)
    return {
        f"d{i:02d}": (
            (1.0 + rng.normal(0, 0.2, N)).astype(np.float32),
            (2.0 + rng.normal(0, 0.2, B)).astype(np.float32),
        )
        for i in range(devices)
    }


def folded(
    rule: Rule,
    found: Mapping[str, Decoded],
    weights: Sequence[int] | None = None,
    byzantine: int = 1,
    trim: float = 0.25,
) -> Folded:
    chosen = FoldSettings(rule, trim=trim, byzantine=byzantine)
    updates = [Weighted(d, w, ALL) for d, w in zip(found, weights or [1] * len(found), strict=True)]
    return robust_fold(chosen, updates, by(found), N, B, HERE)


def by(found: Mapping[str, Decoded]) -> Callable[[Weighted], Decoded]:
    return lambda update: found[update.device]


def stacked(found: Mapping[str, Decoded]) -> npt.NDArray[np.float64]:
    return np.array([np.concatenate(found[d]) for d in sorted(found)], np.float64)


def whole(found: Folded) -> npt.NDArray[np.float64]:
    return np.concatenate([found.parameters, found.buffers])


@pytest.mark.parametrize("devices", [1, 2, 5, 6])
def test_the_median_is_that_of_every_coordinate(devices: int) -> None:
    found = honest(devices)
    np.testing.assert_allclose(whole(folded("median", found)), np.median(stacked(found), axis=0), rtol=1e-6)


def test_the_trimmed_mean_leaves_out_its_share_at_either_end_of_every_coordinate() -> None:
    found = honest(9)
    expected = np.sort(stacked(found), axis=0)[2:7].mean(axis=0)
    np.testing.assert_allclose(whole(folded("trimmed-mean", found, trim=0.2)), expected, rtol=1e-6)


def test_krum_takes_the_update_whose_nearest_are_nearest() -> None:
    found = honest(9)
    values = stacked(found)[:, :N]
    squares = np.square(values[:, None] - values[None]).sum(axis=2)
    np.fill_diagonal(squares, np.inf)
    scores = np.sort(squares, axis=1)[:, : 9 - 2 - 2].sum(axis=1)
    best = int(np.argmin(scores))
    np.testing.assert_array_equal(whole(folded("krum", found, byzantine=2)), stacked(found)[best])
    chosen = np.argsort(scores)[: 9 - 2]
    expected = stacked(found)[chosen].mean(axis=0)
    np.testing.assert_allclose(whole(folded("multi-krum", found, byzantine=2)), expected, rtol=1e-6)


def test_the_geometric_median_is_where_no_step_brings_the_distances_down() -> None:
    found = honest(9)
    values, centre = stacked(found)[:, :N], folded("geometric-median", found).parameters

    def objective(point: npt.NDArray[np.float64]) -> float:
        return float(np.linalg.norm(values - point, axis=1).sum())

    rng = np.random.default_rng(0)
    for _ in range(50):
        assert objective(centre) <= objective(centre + rng.normal(0, 0.05, N)) + 1e-4
    assert objective(centre) < objective(values.mean(axis=0))


def test_the_geometric_median_of_mostly_one_update_is_that_update() -> None:
    found = dict.fromkeys((f"d{i}" for i in range(5)), honest(1)["d00"]) | {"x": honest(1, seed=2)["d00"]}
    np.testing.assert_allclose(whole(folded("geometric-median", found)), stacked(found)[0], rtol=1e-6)


LIES: Mapping[str, Callable[[Vector], Vector]] = {
    "sign-flip": lambda true: -true,
    "scaled": lambda true: np.float32(-1e4) * true,
    "random": lambda true: np.random.default_rng(3).normal(0, 1e4, len(true)).astype(np.float32),
    "huge": lambda true: np.full_like(true, 1e30),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("lie", LIES)
def test_two_liars_of_ten_move_no_robust_fold_out_of_the_honest_range(rule: Rule, lie: str) -> None:
    found = honest(10)
    true = stacked({d: found[d] for d in list(found)[2:]})
    for liar in ("d00", "d01"):
        parameters, buffers = found[liar]
        found[liar] = LIES[lie](parameters), LIES[lie](buffers)
    result = whole(folded(rule, found, byzantine=2))
    room = 0.2 if rule == "geometric-median" else 1e-6
    assert (result >= true.min(axis=0) - room).all()
    assert (result <= true.max(axis=0) + room).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_device_gains_nothing_by_saying_that_it_has_many_examples(rule: Rule) -> None:
    found = honest(9)
    plain, boasted = folded(rule, found), folded(rule, found, [10**6, *[1] * 8])
    assert whole(plain).tobytes() == whole(boasted).tobytes()


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 2**32), devices=st.integers(1, 9), chance=st.randoms())
@settings(max_examples=25)
def test_a_robust_fold_gives_the_same_bits_in_whatever_order_updates_came(
    rule: Rule, seed: int, devices: int, chance: object
) -> None:
    found = honest(devices, seed)
    updates = [Weighted(d, 1 + i, HEAD if i % 3 == 2 else ALL) for i, d in enumerate(found)]
    cut = {u.device: (found[u.device][0][8:], found[u.device][1][:0]) for u in updates if u.layout is HEAD}
    found |= cut
    once = robust_fold(FoldSettings(rule), updates, by(found), N, B, HERE)
    chance.shuffle(updates)  # type: ignore[attr-defined]
    again = robust_fold(FoldSettings(rule), updates, by(found), N, B, HERE)
    assert whole(once).tobytes() == whole(again).tobytes()
    assert once.trained.tobytes() == again.trained.tobytes()
    assert np.isfinite(whole(once)).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_tensor_is_folded_over_those_who_trained_it_and_nobodys_stays(rule: Rule) -> None:
    found = honest(7)
    heads = {d: (found[d][0][8:], found[d][1][:0]) for d in found}
    updates = [Weighted(d, 1, HEAD) for d in found]
    result = robust_fold(FoldSettings(rule), updates, by(heads), N, B, HERE)
    assert result.trained.tolist() == [False] * 8 + [True] * 4
    assert not result.parameters[:8].any()
    assert not result.buffers.any()
    assert (np.abs(result.parameters[8:] - 1.0) < 0.5).all()


@pytest.mark.parametrize("rule", RULES)
def test_liars_among_devices_of_two_layouts_do_no_more_than_among_one(rule: Rule) -> None:
    found = honest(11)
    updates = [Weighted(d, 1, HEAD if i % 2 else ALL) for i, d in enumerate(found)]
    for liar in ("d00", "d01"):
        found[liar] = (np.float32(-100) * found[liar][0], np.float32(-100) * found[liar][1])
    decoded = {
        u.device: found[u.device] if u.layout is ALL else (found[u.device][0][8:], np.zeros(0, np.float32))
        for u in updates
    }
    result = robust_fold(FoldSettings(rule, byzantine=2), updates, by(decoded), N, B, HERE)
    trained = result.parameters[result.trained]
    assert (np.abs(trained - 1.0) < 0.8).all()
    assert result.trained[8:].all()


def test_a_slice_of_the_width_counts_where_it_lies() -> None:
    places = np.array([0, 2, 4, N])
    narrow = Layout((slice(0, 3),), (slice(3, 4),), b"narrow12")
    found = honest(3)
    decoded = {**found, "t0": (np.full(3, 9.0, np.float32), np.full(1, 9.0, np.float32))}
    updates = [*(Weighted(d, 1, ALL) for d in found), Weighted("t0", 1, narrow, places)]
    result = robust_fold(FoldSettings("median"), updates, by(decoded), N, B, HERE)
    values = stacked(found)
    for i in range(N):
        column = [*values[:, i], 9.0] if i in (0, 2, 4) else values[:, i]
        assert result.parameters[i] == pytest.approx(np.median(column))
    np.testing.assert_allclose(result.buffers, np.median(values[:, N:], axis=0))


@pytest.mark.parametrize("rule", RULES)
def test_what_does_not_fit_into_memory_is_spilled_and_comes_to_the_same_bits(
    rule: Rule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = honest(7)
    updates = [Weighted(d, 1, ALL) for d in found]
    kept = robust_fold(FoldSettings(rule), updates, by(found), N, B, tmp_path)
    monkeypatch.setattr(spill, "IN_MEMORY", 0)
    monkeypatch.setattr(spill, "_BLOCK_VALUES", 14)
    spilled = robust_fold(FoldSettings(rule), updates, by(found), N, B, tmp_path)
    np.testing.assert_allclose(whole(kept), whole(spilled), rtol=1e-12)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rule", get_args(Rule))
def test_every_payload_is_decoded_once_where_its_norm_is_known(rule: Rule) -> None:
    found, asked = honest(5), []

    def decode(update: Weighted) -> Decoded:
        asked.append(update.device)
        return found[update.device]

    updates = [Weighted(d, 1, ALL) for d in reversed(found)]
    norms = {(0, d): Norms(1.0, 1.0) for d in found}
    fold_bounded(Caution(FoldSettings(rule)), updates, norms, decode, N, B)
    assert sorted(asked) == sorted(found)


def test_the_clipped_mean_counts_no_update_beyond_its_factor_of_the_median() -> None:
    found = honest(9)
    found["d00"] = (np.float32(1e6) * found["d00"][0], np.float32(1e6) * found["d00"][1])
    updates = [Weighted(d, 1, ALL) for d in found]
    chosen = FoldSettings(clip_factor=2.0)
    result = fold_bounded(Caution(chosen), updates, {}, by(found), N, B)
    assert result.clipped == 1
    true = fold(updates[1:], by(found), N, B)
    assert np.linalg.norm(result.folded.parameters - true.parameters) < 0.5 * np.linalg.norm(true.parameters)
    untouched = fold_bounded(CREDULOUS, updates, {}, by(found), N, B)
    assert untouched.clipped == 0
    assert np.linalg.norm(untouched.folded.parameters) > 1e5


def test_a_fixed_norm_is_the_euclidean_one_of_the_parameters() -> None:
    found = {"d0": (np.full(N, 3.0, np.float32), np.ones(B, np.float32))}
    result = fold_bounded(Caution(FoldSettings(clip=2.0)), [Weighted("d0", 1, ALL)], {}, by(found), N, B)
    assert np.linalg.norm(result.folded.parameters) == pytest.approx(2.0)


@pytest.mark.parametrize("rule", RULES)
def test_a_late_update_counts_by_its_discount_and_where_its_older_mask_let_it_train(rule: Rule) -> None:
    found = {"d0": (np.full(N, 4.0, np.float32), np.zeros(B, np.float32))}
    mask = np.arange(N) < 5
    late = Weighted("d0", 1, ALL, number=1, discount=0.5, mask=mask)
    alone = robust_fold(FoldSettings(rule), [late], by(found), N, B, HERE)
    np.testing.assert_array_equal(alone.parameters, np.where(mask, 2.0, 0.0))
    np.testing.assert_array_equal(alone.trained, mask)
    # The same device may have another update, of the present round, in the same fold.
    both = robust_fold(FoldSettings(rule), [late, replace(late, number=2, mask=None)], by(found), N, B, HERE)
    np.testing.assert_array_equal(both.parameters, np.where(both.trained, 2.0, 0.0))
    assert both.trained.all() or rule == "krum"
