"""Which channels a tier keeps: exact numbers, every part alike, all of them trained in the end."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparse.widths import MODES, Mode, channel_scores, round_to, select


@dataclass(frozen=True)
class Group:
    name: str
    size: int
    multiple: int = 1


@dataclass(frozen=True)
class Segment:
    group: str | None
    size: int
    block: int = 1


@dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple[int, ...]
    offset: int
    prunable: bool = True


C8 = (Group("c", 8),)
RISING = {"c": np.arange(8, dtype=np.float64)}


def chosen(mode: Mode, keep: int, round_: int = 1, **more: int) -> list[int]:
    return [int(i) for i in select(mode, C8, RISING, {"c": keep}, round_, **more)["c"]]


@given(
    st.sampled_from(MODES),
    st.integers(1, 6),
    st.integers(1, 9),
    st.integers(0, 8),
    st.integers(1, 40),
    st.integers(1, 5),
    st.integers(0, 99),
    st.floats(0, 1),
)
def test_a_choice_has_exactly_the_asked_number_in_every_part(
    mode: Mode, multiple: int, part: int, less: int, round_: int, refresh: int, seed: int, explored: float
) -> None:
    group = Group("g", multiple * part, multiple)
    kept = max(1, part - less)
    scores = {"g": np.random.default_rng(seed).normal(size=group.size)}
    found = select(mode, (group,), scores, {"g": kept * multiple}, round_, refresh, seed, explored)["g"]
    assert (np.diff(found) > 0).all()
    assert np.bincount(found // part, minlength=multiple).tolist() == [kept] * multiple


def test_static_takes_the_first_channels_in_every_round() -> None:
    assert [chosen("static", 3, round_) for round_ in (1, 2, 9)] == [[0, 1, 2]] * 3


def test_a_window_moves_on_by_one_at_every_refresh_and_wraps_around() -> None:
    assert [chosen("rolling", 3, round_) for round_ in (1, 2, 7)] == [[0, 1, 2], [1, 2, 3], [0, 6, 7]]
    assert [chosen("rolling", 3, round_, refresh_every=4) for round_ in (1, 4, 5)] == [[0, 1, 2], [0, 1, 2], [1, 2, 3]]
    assert chosen("rolling", 3, seed=6) == [0, 6, 7]


def test_rolling_trains_every_channel_equally_often() -> None:
    counts = np.bincount(np.concatenate([chosen("rolling", 3, round_) for round_ in range(1, 9)]))
    assert counts.tolist() == [3] * 8


def test_windows_of_narrower_tiers_lie_within_those_of_wider_ones() -> None:
    for round_ in range(1, 12):
        assert set(chosen("rolling", 2, round_)) < set(chosen("rolling", 5, round_))


def test_importance_takes_the_highest_scores_and_of_equal_ones_the_first() -> None:
    scores = {"c": np.array([1.0, 5, 3, 3, 3, 0, 5, 2])}
    found = select("importance", C8, scores, {"c": 4}, 1, explored=0.0)["c"]
    assert found.tolist() == [1, 2, 3, 6]


def test_importance_gives_every_other_channel_its_turn() -> None:
    kept = [chosen("importance", 4, round_) for round_ in range(1, 6)]
    assert all({5, 6, 7} <= set(choice) for choice in kept)
    assert [set(choice) - {5, 6, 7} for choice in kept] == [{0}, {1}, {2}, {3}, {4}]


def test_a_channel_whose_weights_grow_comes_back() -> None:
    low = {"c": np.array([9.0, 8, 7, 6, 0, 0, 0, 0])}
    assert 5 not in select("importance", C8, low, {"c": 4}, 1, explored=0.0)["c"]
    low["c"][5] = 10.0
    assert 5 in select("importance", C8, low, {"c": 4}, 2, explored=0.0)["c"]


def test_scores_are_norms_of_what_makes_a_channel_and_of_what_reads_it() -> None:
    tensors = (Tensor("made", (2, 3), 0), Tensor("read", (2, 4), 6), Tensor("bias", (2,), 14, prunable=False))
    axes = {
        "made": ((Segment("c", 2),), (Segment(None, 3),)),
        "read": ((Segment(None, 2),), (Segment("c", 2, block=2),)),
        "bias": ((Segment("c", 2),),),
    }
    made = np.array([[1.0, 2, 0], [0, 0, 1]])
    read = np.array([[0.0, 1, 2, 0], [0, 1, 0, 0]])
    model = np.concatenate([made.ravel(), read.ravel(), [100.0, 0]]).astype(np.float32)
    found = channel_scores((Group("c", 2),), tensors, axes, model)
    np.testing.assert_allclose(found["c"], np.sqrt([5 / 1 + 2 / (6 / 8), 1 / 1 + 4 / (6 / 8)]))


def test_a_layer_of_zeros_scores_nothing() -> None:
    axes = {"made": ((Segment("c", 2),), (Segment(None, 3),))}
    found = channel_scores((Group("c", 2),), (Tensor("made", (2, 3), 0),), axes, np.zeros(6, np.float32))
    assert found["c"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("keep", "nearest"),
    [({"c": 0}, 2), ({"c": 9}, 8), ({"c": 3}, 2), ({}, 2)],
)
def test_numbers_that_cannot_be_kept_are_refused_with_the_nearest_that_can(keep: dict[str, int], nearest: int) -> None:
    with pytest.raises(ValueError, match=rf"'c' in 2 equal parts are impossible; the nearest that works is {nearest}$"):
        select("static", (Group("c", 8, 2),), {}, keep, 1)


def test_other_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="static, rolling, importance"):
        select("random", C8, RISING, {"c": 2}, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs 8 finite"):
        select("importance", C8, {"c": np.ones(7)}, {"c": 2}, 1)
    with pytest.raises(ValueError, match="refresh_every: 0"):
        select("rolling", C8, RISING, {"c": 2}, 1, 0)
    with pytest.raises(ValueError, match="explored"):
        select("importance", C8, RISING, {"c": 2}, 1, explored=1.5)


def test_to_the_nearest_multiple() -> None:
    assert [round_to(count, 4) for count in (0, 2, 2.1, 6, 6.1, 9)] == [0, 0, 4, 4, 8, 8]
