"""Rules for dynamic masks: the error identity, exact counts, what comes back, and each paper's own moves."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse import dynamic
from sparse.distributions import kept_of
from sparse.dynamic import Method, SparseRule, SparseState
from sparse.masks import Vector, masked, sparsity_of
from sparse.regrowth import cosine, regrown
from sparse.tensors import FlatTensor, prunable_mask
from tests.sparse.flat import PRUNABLE, TENSORS, N

RATE = np.float32(0.1)
METHODS: tuple[Method, ...] = ("static", "one-shot", "gradual", "dpf", "dpf-without-feedback", "rigl", "set")
REMEMBERS = ("dpf", "dpf-without-feedback")


def rule_of(method: Method, sparsity: float = 0.5, until: int = 12, every: int = 4, seed: int = 1) -> SparseRule:
    moving = method in ("rigl", "set")
    return SparseRule(method, sparsity, until, "erk" if moving else "global", every, seed=seed)


def normal(seed: int) -> Vector:
    return np.random.default_rng(seed).normal(size=N).astype(np.float32)


def run(rule: SparseRule, steps: int, seed: int = 0) -> list[tuple[SparseState, Vector]]:
    """States and dense weights from the first to that after all steps of plain SGD along drawn gradients."""
    state, weights = dynamic.init(rule, TENSORS, normal(seed))
    passed = [(state, weights)]
    for step in range(steps):
        gradient = normal(1000 + 7 * seed + step)
        moved = weights - RATE * dynamic.applied(rule, state, gradient)
        state, weights = dynamic.advance(rule, TENSORS, state, moved, gradient)
        passed.append((state, weights))
    return passed


@given(seed=st.integers(0, 500), sparsity=st.floats(0.0, 0.95), every=st.integers(1, 5))
def test_the_error_identity_of_dpf_holds_bit_for_bit(seed: int, sparsity: float, every: int) -> None:
    rule = SparseRule("dpf", sparsity, until=12, refresh_every=every)
    passed = run(rule, 15, seed)
    for step, ((state, w), (after, new)) in enumerate(pairwise(passed)):
        tilde, new_tilde = masked(w, state.mask), masked(new, after.mask)
        error, new_error = w - tilde, new - new_tilde
        # w~' = w~ - eta g + e - e': one of w~ and e is 0 at every place, so both sides are exact up to one rounding.
        np.testing.assert_array_equal(new_tilde + new_error, (tilde + error) - RATE * normal(1000 + 7 * seed + step))


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 100), sparsity=st.floats(0.0, 0.9))
def test_every_mask_has_exactly_the_scheduled_number_of_ones(method: Method, seed: int, sparsity: float) -> None:
    rule = rule_of(method, sparsity, until=9)
    for step, (state, weights) in enumerate(run(rule, 14, seed)):
        assert state.steps == step
        assert weights.dtype == np.float32
        assert state.mask[~prunable_mask(TENSORS)].all()
        kept = np.count_nonzero(state.mask & prunable_mask(TENSORS))
        # After the last refresh, and where sparsity is constant, at every step.
        if step >= 9 or method in ("static", "rigl", "set"):
            assert kept == kept_of(PRUNABLE, sparsity)
        assert kept >= kept_of(PRUNABLE, sparsity)


@pytest.mark.parametrize("method", METHODS)
def test_masks_rest_after_their_last_step_and_between_refreshes(method: Method) -> None:
    passed = run(rule_of(method), 20)
    for step in range(1, 21):
        if step > 12 or step % 4:
            assert passed[step][0].mask is passed[step - 1][0].mask


@pytest.mark.parametrize("method", [m for m in METHODS if m not in REMEMBERS])
def test_rules_without_memory_keep_nothing_outside_the_mask(method: Method) -> None:
    for state, weights in run(rule_of(method), 20):
        np.testing.assert_array_equal(weights, masked(weights, state.mask))
        assert not dynamic.applied(rule_of(method), state, normal(3))[~state.mask].any()


def returns(rule: SparseRule, steps: int = 300) -> bool:
    """Whether the last of ten weights, the smallest and pruned, is kept after steps along a gradient that grows it."""
    tensors = (FlatTensor("w", 0, (10,), True),)
    gradient = np.zeros(10, np.float32)
    gradient[9] = -0.05
    weights = np.linspace(1.0, 0.1, 10, dtype=np.float32)
    # So late that the schedule asks for five of ten from here on.
    state = SparseState(1600, np.arange(10) < 5)
    weights = weights if rule.method == "dpf" else masked(weights, state.mask)
    for _ in range(steps):
        moved = weights - RATE * dynamic.applied(rule, state, gradient)
        state, weights = dynamic.advance(rule, tensors, state, moved, gradient)
        assert np.count_nonzero(state.mask) == 5
    return bool(state.mask[9])


def test_a_pruned_weight_with_a_persistent_gradient_comes_back_with_feedback_and_not_without() -> None:
    assert returns(SparseRule("dpf", 0.5, until=2000))
    # It takes a hundred steps to pass the threshold: before that, and once masks rest, it stays out.
    assert not returns(SparseRule("dpf", 0.5, until=2000), steps=90)
    assert not returns(SparseRule("dpf", 0.5, until=1600))
    for method in ("gradual", "dpf-without-feedback", "one-shot", "static"):
        assert not returns(SparseRule(method, 0.5, until=2000))


def test_rigl_grows_what_the_gradient_asks_for_and_set_what_chance_says() -> None:
    assert returns(SparseRule("rigl", 0.5, until=5000, distribution="erk"))
    rule = rule_of("set", until=100)
    first, again = run(rule, 40), run(rule, 40)
    np.testing.assert_array_equal(first[-1][0].mask, again[-1][0].mask)
    assert (first[-1][0].mask != first[0][0].mask).any()
    other = run(rule_of("set", until=100, seed=2), 40)
    assert (other[-1][0].mask != first[-1][0].mask).any()


def test_the_first_mask_of_rigl_and_set_is_drawn_and_not_by_magnitude() -> None:
    small_last = np.linspace(1.0, 0.1, N, dtype=np.float32)
    state, weights = dynamic.init(rule_of("rigl"), TENSORS, small_last)
    np.testing.assert_array_equal(weights, masked(small_last, state.mask))
    static, _ = dynamic.init(rule_of("static"), TENSORS, small_last)
    assert (state.mask != static.mask).any()
    # One of the forty is the head's largest, which no threshold takes away.
    assert static.mask[:39].all()


@given(seed=st.integers(0, 300), fraction=st.floats(0.0, 1.0))
def test_regrowing_keeps_each_tensors_count_and_its_largest_weights(seed: int, fraction: float) -> None:
    state, weights = dynamic.init(rule_of("rigl", seed=seed), TENSORS, normal(seed))
    mask = regrown(TENSORS, state.mask, weights, np.abs(normal(seed + 1)), fraction)
    for t in TENSORS:
        before, after = state.mask[t.part], mask[t.part]
        assert np.count_nonzero(before) == np.count_nonzero(after)
        stay = np.count_nonzero(before) - int(fraction * np.count_nonzero(before)) if t.prunable else t.size
        held = np.where(before, np.abs(weights[t.part]), -1)
        assert after[np.argsort(-held, kind="stable")[:stay]].all()


def test_regrowing_takes_the_largest_gradients_among_what_is_free() -> None:
    flat = (FlatTensor("w", 0, (6,), True),)
    mask = np.array([1, 1, 1, 0, 0, 0], np.bool_)
    weights = np.array([3, 2, 1, 0, 0, 0], np.float32)
    growth = np.array([9, 9, 0, 1, 5, 2], np.float32)
    # A third of three moves: the smallest goes, and the largest gradient outside comes.
    assert regrown(flat, mask, weights, growth, 1 / 3).tolist() == [True, True, False, False, True, False]


def test_the_share_that_moves_falls_along_half_a_cosine() -> None:
    assert cosine(0.3, 0, 100) == pytest.approx(0.3)
    assert cosine(0.3, 50, 100) == pytest.approx(0.15)
    assert cosine(0.3, 100, 100) == cosine(0.3, 120, 100) == pytest.approx(0.0)


def test_without_feedback_the_dense_weights_lose_what_the_mask_leaves_out_at_each_refresh() -> None:
    rule = rule_of("dpf-without-feedback")
    for step, (state, weights) in enumerate(run(rule, 12)):
        if step % 4 == 0:
            np.testing.assert_array_equal(weights, masked(weights, state.mask))


def test_one_shot_is_dense_until_its_step_and_then_sparse_for_good() -> None:
    passed = run(rule_of("one-shot", 0.75), 20)
    prunable = prunable_mask(TENSORS)
    assert [sparsity_of(state.mask, prunable) for state, _ in passed] == [0.0] * 12 + [0.75] * 9


def test_a_mask_from_elsewhere_takes_the_place_of_the_rules_own() -> None:
    mask = ~prunable_mask(TENSORS)
    mask[:10] = True
    state, weights = dynamic.init(rule_of("static", 0.875), TENSORS, normal(0), mask)
    assert state.mask is mask
    assert not weights[10:48].any()
    with pytest.raises(ValueError, match=r"mask: \(5,\) values for \(92,\) weights"):
        dynamic.init(rule_of("static"), TENSORS, normal(0), mask[:5])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "lottery"}, "method: 'lottery' is unknown; use static, one-shot"),
        ({"sparsity": 1.0}, "sparsity: 1.0 must be at least 0 and below 1"),
        ({"sparsity": float("nan")}, "sparsity: nan"),
        ({"refresh_every": 0}, "refresh_every: 0 must be at least 1; 16 is usual"),
        ({"begin": 20}, "until: step 12 must not come before step 20"),
        ({"drop_fraction": 1.5}, "drop_fraction: 1.5 must be from 0 to 1"),
        ({"method": "rigl"}, "distribution: rigl fixes what each tensor keeps; use erk or uniform"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_its_field(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SparseRule(**{"method": "dpf", "sparsity": 0.5, "until": 12, **change})  # type: ignore[arg-type]
